package linux

import "testing"

func TestContainerOf(t *testing.T) {
	const (
		id     = "4f6b9c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6f708192a3b4c5d6e7f"
		id2    = "0000111122223333444455556666777788889999aaaabbbbccccddddeeeeffff"
		uid    = "8dbc04f5-3bfc-4d9d-a2c2-5d4e8d6f0a11"
		slice  = "8dbc04f5_3bfc_4d9d_a2c2_5d4e8d6f0a11"
		static = "d4ba6b9ba1dc8ea0f9b52f4ac7c8f2b8"
		user   = "/user.slice/user-1000.slice/user@1000.service/user.slice/"
	)
	docker := Container{ID: id, Runtime: RuntimeDocker}
	containerd := Container{ID: id, Runtime: RuntimeContainerd}
	podman := Container{ID: id, Runtime: RuntimePodman}
	lxc := Container{ID: "web01", Runtime: RuntimeLXC, Name: "web01"}
	inPod := func(c Container, pod string) Container { c.Pod = pod; return c }
	for path, want := range map[string]Container{
		"/": {},
		"/user.slice/user-1000.slice/session-2.scope": {},
		"/system.slice/containerd.service":            {},
		"/system.slice/podman.service":                {},
		"/kubepods.slice":                             {},
		"/kubepods.slice/kubepods-burstable.slice":    {},

		// Docker: with cgroupfs, with systemd, without root, nested, by Swarm.
		"/docker/" + id:                                            docker,
		"/docker/" + id + "/init":                                  docker,
		"/system.slice/docker-" + id + ".scope":                    docker,
		user + "docker-" + id + ".scope":                           docker,
		"/docker/" + id2 + "/docker/" + id:                         docker,
		"/system.slice/docker-" + id2 + ".scope/docker/" + id:      docker,
		"/moby/" + id:                                              docker,
		"/my.slice/my-group.slice/docker-" + id + ".scope/payload": docker,

		// containerd: ctr, nerdctl with and without root.
		"/default/" + id:                         containerd,
		"/default/redis":                         {ID: "redis", Runtime: RuntimeContainerd},
		"/system.slice/nerdctl-" + id + ".scope": containerd,
		user + "nerdctl-" + id + ".scope":        containerd,
		"/k8s.io/" + id:                          containerd,

		// Kubernetes: kubelet with systemd and with cgroupfs, each class of pods.
		"/kubepods.slice/kubepods-pod" + slice + ".slice/cri-containerd-" + id + ".scope":                                    inPod(containerd, uid),
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + slice + ".slice/cri-containerd-" + id + ".scope": inPod(containerd, uid),
		"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + slice + ".slice/docker-" + id + ".scope":       inPod(docker, uid),
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + static + ".slice/crio-" + id + ".scope":          {ID: id, Runtime: RuntimeCRIO, Pod: static},
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + slice + ".slice/crio-" + id + ".scope/container": {ID: id, Runtime: RuntimeCRIO, Pod: uid},
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + slice + ".slice/crio-conmon-" + id + ".scope":    {Pod: uid},
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + slice + ".slice":                                 {Pod: uid},
		"/kubepods/burstable/pod" + uid + "/" + id:                                                                           {ID: id, Pod: uid},
		"/kubepods/pod" + static + "/" + id:                                                                                                {ID: id, Pod: static},
		"/kubepods/besteffort/pod" + uid + "/crio-" + id:                                                                                   {ID: id, Runtime: RuntimeCRIO, Pod: uid},
		"/kubepods/burstable/pod" + uid + "/" + id2 + "/docker/" + id:                                                                      inPod(docker, uid),
		"/system.slice/containerd.service/kubepods-burstable-pod" + slice + ".slice:cri-containerd:" + id:                                  inPod(containerd, uid),
		"/system.slice/crio.service/kubepods-pod" + slice + ".slice:crio:" + id:                                                            {ID: id, Runtime: RuntimeCRIO, Pod: uid},
		"/docker/" + id2 + "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + slice + ".slice/cri-containerd-" + id + ".scope": inPod(containerd, uid),
		"/kubepods/podless/" + id:          {ID: id},
		"/system.slice/my-podcast.slice":   {},
		"/kubepods/burstable/podcast":      {},
		"/kubepods/burstable/pod1-2-3-4-5": {},

		// Podman: with and without root, with cgroupfs, in its own pods, under a unit.
		"/machine.slice/libpod-" + id + ".scope":                                      podman,
		"/machine.slice/libpod-" + id + ".scope/container":                            podman,
		"/machine.slice/libpod-conmon-" + id + ".scope":                               {},
		user + "libpod-" + id + ".scope/container":                                    podman,
		user + "user-libpod_pod_" + id2 + ".slice/libpod-" + id + ".scope":            inPod(podman, id2),
		"/machine.slice/machine-libpod_pod_" + id2 + ".slice/libpod-" + id + ".scope": inPod(podman, id2),
		"/libpod_parent/libpod-" + id:                                                 podman,
		"/libpod_parent/" + id:                                                        podman,
		"/system.slice/web.service/libpod-payload-" + id:                              podman,
		"/system.slice/web.service/runtime":                                           {},

		// LXC, LXD, Incus and Proxmox.
		"/lxc/web01":                                              lxc,
		"/lxc/web01/ns/system.slice/ssh.service":                  lxc,
		"/lxc.payload/web01":                                      lxc,
		"/lxc.payload.web01/init.scope":                           lxc,
		user + "lxc.payload.web01/init.scope":                     lxc,
		"/lxc.monitor.web01":                                      {},
		"/lxc.monitor/web01":                                      {},
		"/lxc.payload.web01/system.slice/docker-" + id + ".scope": docker,

		// systemd-nspawn, and what else systemd-machined knows.
		"/machine.slice/systemd-nspawn@deb\\x2d12.service/payload/init.scope": {ID: "deb-12", Runtime: RuntimeNspawn, Name: "deb-12"},
		"/machine.slice/systemd-nspawn@deb.service/supervisor":                {},
		"/machine.slice/machine-my\\x2dbox.scope/payload":                     {ID: "my-box", Runtime: RuntimeNspawn, Name: "my-box"},
		"/machine.slice/machine-my\\x2dbox.scope/supervisor":                  {},
		"/machine.slice/machine-lxc\\x2d4711\\x2dweb\\x2d1.scope":             {ID: "lxc-4711-web-1", Runtime: RuntimeLibvirtLXC, Name: "web-1"},
		"/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/emulator":             {},

		// runc and crun by themselves.
		"/system.slice/runc-web.scope":   {ID: "web", Runtime: RuntimeRunc, Name: "web"},
		"/system.slice/crun-web.scope":   {ID: "web", Runtime: RuntimeCrun, Name: "web"},
		"/system.slice/runc.service":     {},
		"/system.slice/crun-web.service": {},
	} {
		if got := ContainerOf(path); got != want {
			t.Errorf("%s:\n%+v, want\n%+v", path, got, want)
		}
	}
}

func FuzzContainerOf(f *testing.F) {
	f.Add("/kubepods.slice/kubepods-pod8dbc04f5_3bfc_4d9d_a2c2_5d4e8d6f0a11.slice:crio:0123456789abcdef")
	f.Add(`/machine.slice/machine-lxc\x2d1\x2.scope/supervisor`)
	f.Add("//lxc//default")
	f.Fuzz(func(t *testing.T, path string) {
		c := ContainerOf(path)
		if c.ID == "" && (c.Runtime != "" || c.Name != "") || len(c.ID)+len(c.Pod) > 2*len(path) {
			t.Errorf("%q: %+v", path, c)
		}
	})
}
