package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

// guestLines are what is printed of a guest as a whole: a name and a value, or
// neither between two sections.
func guestLines(g *linux.Info) [][2]string {
	kaslr := "off"
	if g.KASLROffset != 0 {
		kaslr = fmt.Sprintf("moved by %#x", g.KASLROffset)
	}
	m := g.Memory
	lines := [][2]string{
		{},
		{"System", orUnknown(strings.TrimSpace(g.OSName), "not known: /etc/os-release is not in the guest's page cache")},
		{"Hostname", g.Hostname},
		{"Booted", utcText(g.BootTime)},
		{"Clock", utcText(g.Clock)},
		{"Uptime", uptimeText(g.Uptime)},
		{"CPUs online", countText(g.CPUs)},
		{"CPU", orUnknown(g.CPUModel, "-")},
		{"Load", fmt.Sprintf("%.2f %.2f %.2f", g.LoadAverages[0], g.LoadAverages[1], g.LoadAverages[2])},
		{"In use", fmt.Sprintf("%s of %s; %s available, %s free, %s cached, %s slab", bytesText(m.Total-min(m.Available, m.Total)),
			bytesText(m.Total), bytesText(m.Available), bytesText(m.Free), bytesText(m.Cached), bytesText(m.Slab))},
		{"Swap", fmt.Sprintf("%s of %s", bytesText(m.SwapTotal-min(m.SwapFree, m.SwapTotal)), bytesText(m.SwapTotal))},
		{"Cgroups", orUnknown(g.CgroupVersion, "none")},
		{},
		{"Security", orUnknown(strings.Join(g.LSMs, ","), "no modules")},
		{"Lockdown", orUnknown(g.Lockdown, "the kernel has none")},
	}
	if g.Taint.Mask == 0 {
		lines = append(lines, [2]string{"Taint", "none"})
	}
	for n, why := range g.Taint.Reasons {
		lines = append(lines, [2]string{"Taint", g.Taint.Letters[n:n+1] + ": " + why})
	}
	return append(lines, [][2]string{
		{},
		{"Kernel", g.OS + " " + g.Release + " " + g.Arch},
		{"Version", g.Version},
		{"Build ID", g.BuildID},
		{"Command line", g.CommandLine},
		{"Kernel base", fmt.Sprintf("%v virtual, %v physical", g.VirtBase, g.PhysBase)},
		{"KASLR", kaslr},
		{"Page tables", fmt.Sprintf("%d levels", g.PageTableLevels)},
	}...)
}

func orUnknown(s, unknown string) string {
	if s == "" {
		return unknown
	}
	return s
}

// utcText is timeText with its zone.
func utcText(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return timeText(t) + " UTC"
}

// uptimeText writes d as uptime(1) does: "3 days, 4:05:06".
func uptimeText(d time.Duration) string {
	s := int64(d / time.Second)
	text := fmt.Sprintf("%d:%02d:%02d", s/3600%24, s/60%60, s%60)
	switch days := s / 86400; days {
	case 0:
		return text
	case 1:
		return "1 day, " + text
	default:
		return fmt.Sprintf("%d days, %s", days, text)
	}
}

func (a *app) printInterfaces(is []linux.Interface) error {
	if len(is) == 0 {
		return nil
	}
	t := term.NewTable(
		term.Column{Title: "INTERFACE"}, term.Column{Title: "STATE"}, term.Column{Title: "MAC"}, term.Column{Title: "MTU", Right: true},
		term.Column{Title: "NET NAMESPACE", Right: true}, term.Column{Title: "ADDRESSES", Flex: true},
	)
	for n := range is {
		i := &is[n]
		state := "DOWN"
		if i.Up {
			state = "UP"
		}
		for _, f := range i.Flags {
			if f == "PROMISC" {
				state += ",PROMISC"
			}
		}
		var addresses []string
		for _, p := range i.Addresses {
			addresses = append(addresses, p.String())
		}
		t.Row(i.Name, state, i.MAC, fmt.Sprint(i.MTU), fmt.Sprint(i.Namespace), strings.Join(addresses, " "))
	}
	if _, err := fmt.Fprintln(a.stdout); err != nil {
		return err
	}
	return t.Print(a.stdout)
}

func (a *app) printMounts(ms []linux.Mount) error {
	if len(ms) == 0 {
		return nil
	}
	t := term.NewTable(
		term.Column{Title: "MOUNTED ON", Flex: true}, term.Column{Title: "TYPE"}, term.Column{Title: "SOURCE"},
		term.Column{Title: "DEVICE", Right: true}, term.Column{Title: "OPTIONS"},
	)
	for n := range ms {
		m := &ms[n]
		source := m.Source
		if m.Root != "/" {
			source += "[" + m.Root + "]" // as findmnt(8) writes it
		}
		t.Row(m.Target, m.FSType, source, m.Device.String(), m.Options)
	}
	if _, err := fmt.Fprintln(a.stdout); err != nil {
		return err
	}
	return t.Print(a.stdout)
}
