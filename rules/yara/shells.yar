// Reverse shells: in memory they stay as argument lists, shell history, scripts
// read in, and environment.

rule Reverse_Shell_Bash : linux shell
{
    meta:
        author = "Vantage project"
        description = "Shell whose input and output are a TCP connection of bash's /dev/tcp"
        severity = "critical"
        reference = "https://attack.mitre.org/techniques/T1059/004/"
    strings:
        $redirect = /(ba|z|k)?sh -i[^\n\x00]{0,8}>& ?\/dev\/(tcp|udp)\/[0-9A-Za-z.:-]{3,64}\/[0-9]{1,5}/
        $exec = /exec [0-9]{1,3}<> ?\/dev\/(tcp|udp)\/[0-9A-Za-z.:-]{3,64}\/[0-9]{1,5}/
    condition:
        any of them
}

rule Reverse_Shell_Netcat : linux shell
{
    meta:
        author = "Vantage project"
        description = "Netcat or socat that hands a shell to a connection"
        severity = "high"
        reference = "https://attack.mitre.org/techniques/T1059/004/"
    strings:
        $nc = /\b(nc|ncat|netcat)(\.traditional|\.openbsd)? [^\n\x00]{0,64}-e ?\/bin\/(ba|da)?sh\b/
        $fifo = /mkfifo [^\n\x00]{1,64};[^\n\x00]{0,96}\/bin\/(ba|da)?sh -i[^\n\x00]{0,32}\| ?(nc|ncat|netcat) /
        $socat = /socat [^\n\x00]{0,96}exec:['"]?(\/bin\/)?(ba|da)?sh[^\n\x00]{0,32}pty/ nocase
    condition:
        any of them
}

rule Reverse_Shell_Interpreter : linux shell
{
    meta:
        author = "Vantage project"
        description = "Interpreter one-liner that connects a socket to a shell"
        severity = "high"
        reference = "https://attack.mitre.org/techniques/T1059/"
    strings:
        $python = /socket\.socket\([^\n\x00]{0,200}os\.dup2\(s\.fileno\(\), ?[012]\)[^\n\x00]{0,200}(pty\.spawn|subprocess\.call|os\.system)/
        $perl = /use Socket;[^\n\x00]{0,300}open\(STDIN, ?">&S"\)[^\n\x00]{0,100}exec\(?"\/bin\/(ba)?sh/
        $php = /fsockopen\([^\n\x00]{4,80}\);[^\n\x00]{0,32}(exec|shell_exec|system|passthru|proc_open)\("\/bin\/(ba)?sh -i/
        $ruby = /TCPSocket\.(new|open)\([^\n\x00]{4,80}\)[^\n\x00]{0,64}exec ?sprintf\("\/bin\/(ba)?sh -i/
    condition:
        any of them
}
