package lab

import "testing"

// What a guest prints may be anything: a guest under test can be corrupted on
// purpose.
func FuzzParseTruth(f *testing.F) {
	f.Add(`{"kind":"process","pid":7,"comm":"\u00c3","uids":[0,1,2,3],"namespaces":{"pid":1},"threads":[{"tid":8,"comm":"x"}]}` + "\n")
	f.Add(`{"kind":"made","pid":7,"label":"a","a_secret":"a-1","a_secret_addr":"0x1000"}` + "\n")
	f.Add(`{"kind":"symbol","addr":"0xffffffff81000000","type":"T","count":1,"name":"_text"}` + "\n")
	f.Add(`{"kind":"system","btime":1,"clk_tck":0}` + "\n" + `{"kind":"iomem","start":"0x","end":"0x1"}`)
	f.Fuzz(func(t *testing.T, text string) {
		truth, err := ParseTruth(text)
		if err != nil {
			return
		}
		for _, p := range truth.Processes {
			_ = p.Args()
			_ = truth.System.Start(p)
		}
		for _, m := range truth.Made {
			_ = m.Secrets()
		}
	})
}
