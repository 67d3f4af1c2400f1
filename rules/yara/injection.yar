// Code where code should not be.

rule ELF_In_Anonymous_Executable_Memory : linux injection
{
    meta:
        author = "Vantage project"
        description = "ELF image at the start of anonymous executable memory: loaded by something other than the kernel or ld.so"
        severity = "high"
        reference = "https://attack.mitre.org/techniques/T1620/"
    condition:
        kind == "process" and where == "[anon]" and perms contains "x" and
        uint32(0) == 0x464c457f and // 0x7f "ELF"
        uint8(4) >= 1 and uint8(4) <= 2 and uint8(5) >= 1 and uint8(5) <= 2 and uint8(6) == 1
}

rule ELF_Executed_From_Memfd : linux injection fileless
{
    meta:
        author = "Vantage project"
        description = "Program or library mapped executable from a memfd: no file on a disk"
        severity = "medium"
        reference = "https://attack.mitre.org/techniques/T1620/"
    condition:
        // runc runs a copy of itself like that, to guard against its containers.
        kind == "process" and where startswith "/memfd:" and perms contains "x" and
        not where startswith "/memfd:runc_cloned"
}

rule Shellcode_Execve_Bin_Sh_X64 : linux shellcode
{
    meta:
        author = "Vantage project"
        description = "x86-64 code that puts /bin/sh on the stack and calls execve"
        severity = "high"
        reference = "https://man7.org/linux/man-pages/man2/execve.2.html"
    strings:
        // mov r64, "/bin//sh" or "//bin/sh" or "/bin/sh\0"; push r64; … mov al, 59 / push 59; … syscall
        $slash2 = { (48|49) (B8|B9|BA|BB|BD|BE|BF) 2F 62 69 6E 2F 2F 73 68 [0-8] (50|51|52|53|55|56|57) [0-32] (B0 3B|6A 3B) [0-24] 0F 05 }
        $slash1 = { (48|49) (B8|B9|BA|BB|BD|BE|BF) 2F 2F 62 69 6E 2F 73 68 [0-8] (50|51|52|53|55|56|57) [0-32] (B0 3B|6A 3B) [0-24] 0F 05 }
        $nul    = { (48|49) (B8|B9|BA|BB|BD|BE|BF) 2F 62 69 6E 2F 73 68 00 [0-8] (50|51|52|53|55|56|57) [0-32] (B0 3B|6A 3B) [0-24] 0F 05 }
    condition:
        any of them
}
