// Package insn reads x86 instructions: how long one is, which memory it reads
// and writes, and, for those that are common at the beginning of functions and
// as stores, what it does, so that a trap is resumed without a single step and a
// write is told before it lands.
//
// The bytes are a guest's: any bytes give an Inst or an error. What is not known
// for certain is an error or false, and the caller lets the processor do it.
//
// Sources: Intel SDM volume 2 (2.1 to 2.7, appendix A), AMD APM volume 3
// (appendix A). It must not import anything of Vantage but package hypervisor.
package insn
