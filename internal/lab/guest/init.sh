#!/bin/sh
# /init of a guest of the lab. Config.Init is sourced from /lab/init.sh.
export PATH=/bin HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# From here on the kernel must not print into the lines that the host reads.
echo 1 > /proc/sys/kernel/printk
stty -echo
hostname -F /lab/name
ip link set lo up
while read -r module; do
	insmod "/lib/modules/$module.ko" || echo "insmod $module failed"
done < /lab/modules
if [ -x /lab/truth ]; then
	exec /lab/truth
fi
. /lab/init.sh
cat /lab/ready
# One command a line, in base64; see Guest.Run.
while :; do
	read -r lab_id lab_script || continue
	echo "VANTAGE-LAB-BEGIN $lab_id"
	eval "$(echo "$lab_script" | base64 -d)"
	lab_status=$?
	printf '\nVANTAGE-LAB-END %s %s\n' "$lab_id" "$lab_status"
done
