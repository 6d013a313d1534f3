//! What shows which technique. To teach the plugin something, add a line to one of the three tables.
//!
//! - `COMMAND_RULES` look at one simple command, taken apart by `shell`.
//! - `LINE_RULES` look at a whole command line, for what only shows across commands.
//! - `EVENT_RULES` look at attacks that are not commands: logins, transfers, tunnels.
//!
//! The confidence says how often such a sight is that technique, on a honeypot, where nobody works for a living.

use crate::shell::{Command, SHELLS, decodes_base64};
use crate::techniques::*;

/// A condition on one command. Texts are compared as they are written, case and all.
pub enum Matcher {
    /// The program's name, without folders, is one of these.
    Program(&'static [&'static str]),
    /// The program as it was typed begins with one of these.
    Invoked(&'static [&'static str]),
    /// `sudo`, `busybox` or the like stood in front.
    Wrapper(&'static str),
    /// Some argument is exactly one of these.
    Exactly(&'static [&'static str]),
    /// Some argument contains one of these.
    Argument(&'static [&'static str]),
    /// Output is redirected to a file whose name contains one of these.
    Writes(&'static [&'static str]),
    /// A variable in front of the command is set, and the setting begins with one of these.
    Assigns(&'static [&'static str]),
    /// The command as it was typed contains one of these.
    Text(&'static [&'static str]),
    /// The command has no arguments.
    Bare,
    /// The command reads the output of the one before it.
    Piped,
    /// What a table cannot say, as a function.
    Test(fn(&Command) -> bool),
    All(&'static [Matcher]),
    Any(&'static [Matcher]),
    Not(&'static Matcher),
}

impl Matcher {
    pub fn matches(&self, command: &Command) -> bool {
        match self {
            Matcher::Program(names) => names.contains(&command.program.as_str()),
            Matcher::Invoked(starts) => starts.iter().any(|start| command.invoked.starts_with(start)),
            Matcher::Wrapper(name) => command.wrappers.iter().any(|wrapper| wrapper == name),
            Matcher::Exactly(words) => command.arguments.iter().any(|argument| words.contains(&argument.as_str())),
            Matcher::Argument(parts) => command.arguments.iter().any(|argument| contains_any(argument, parts)),
            Matcher::Writes(parts) => command.writes.iter().any(|target| contains_any(target, parts)),
            Matcher::Assigns(starts) => {
                command.assignments.iter().any(|setting| starts.iter().any(|start| setting.starts_with(start)))
            }
            Matcher::Text(parts) => contains_any(&command.text, parts),
            Matcher::Bare => command.arguments.is_empty(),
            Matcher::Piped => command.piped,
            Matcher::Test(test) => test(command),
            Matcher::All(matchers) => matchers.iter().all(|matcher| matcher.matches(command)),
            Matcher::Any(matchers) => matchers.iter().any(|matcher| matcher.matches(command)),
            Matcher::Not(matcher) => !matcher.matches(command),
        }
    }
}

pub(crate) fn contains_any(text: &str, parts: &[&str]) -> bool {
    parts.iter().any(|part| text.contains(part))
}

pub struct CommandRule {
    pub technique: Technique,
    pub confidence: f64,
    pub when: Matcher,
}

/// The technique is shown when all the parts stand somewhere in the line.
pub struct LineRule {
    pub technique: Technique,
    pub confidence: f64,
    pub all: &'static [&'static str],
}

/// The technique is shown by attacks with this action whose detail `field` contains one of `parts`; no parts: by all.
pub struct EventRule {
    pub action: &'static str,
    pub technique: Technique,
    pub confidence: f64,
    pub field: &'static str,
    pub parts: &'static [&'static str],
}

const fn command(technique: Technique, confidence: f64, when: Matcher) -> CommandRule {
    CommandRule { technique, confidence, when }
}

const fn line(technique: Technique, confidence: f64, all: &'static [&'static str]) -> LineRule {
    LineRule { technique, confidence, all }
}

const fn event(
    action: &'static str,
    technique: Technique,
    confidence: f64,
    field: &'static str,
    parts: &'static [&'static str],
) -> EventRule {
    EventRule { action, technique, confidence, field, parts }
}

use Matcher::*;

const SCRATCH: &[&str] = &["/tmp/", "/var/tmp/", "/dev/shm/", "/var/run/", "/mnt/"];
const LOG_FILES: &[&str] = &["/var/log", "wtmp", "btmp", "utmp", "lastlog"];
const HISTORY_FILES: &[&str] = &[".bash_history", ".sh_history", ".ash_history", ".zsh_history"];
const CRON_FILES: &[&str] = &["/etc/cron", "/var/spool/cron"];
const SHELL_PROFILES: &[&str] = &[".bashrc", ".profile", ".bash_profile", "/etc/profile"];
const NETCATS: &[&str] = &["nc", "ncat", "netcat"];
const READERS: &[&str] = &["cat", "less", "more", "head", "tail", "grep", "awk", "cut", "strings", "sed", "cp"];
const MINERS: &[&str] = &["xmrig", "minerd", "cpuminer", "kinsing", "kdevtmpfsi", "nbminer", "xmr-stak"];
const DEFENDERS: &[&str] =
    &["auditd", "rsyslog", "syslog", "apparmor", "fail2ban", "falco", "clamav", "aegis", "selinux"];
const READS: Matcher = Program(READERS);
const KILLS: Matcher = Program(&["kill", "killall", "pkill", "killall5"]);
const STOPS: Matcher = All(&[
    Program(&["systemctl", "service", "chkconfig", "update-rc.d"]),
    Exactly(&["stop", "disable", "mask", "off", "remove"]),
]);

pub const COMMAND_RULES: &[CommandRule] = &[
    // Tools brought in
    command(
        INGRESS_TOOL_TRANSFER,
        0.9,
        Program(&["wget", "curl", "tftp", "ftpget", "fetch", "axel", "aria2c", "lwp-download"]),
    ),
    command(INGRESS_TOOL_TRANSFER, 0.6, Program(&["ftp", "sftp", "rsync", "scp"])),
    command(INGRESS_TOOL_TRANSFER, 0.6, All(&[Program(&["git"]), Exactly(&["clone"])])),
    command(
        INGRESS_TOOL_TRANSFER,
        0.7,
        All(&[Program(&["python", "python2", "python3", "perl"]), Argument(&["http://", "https://"])]),
    ),
    command(INGRESS_TOOL_TRANSFER, 0.5, Program(&["apt", "apt-get", "yum", "dnf", "apk", "pip", "pip3", "opkg"])),
    // Execution
    command(UNIX_SHELL, 0.8, All(&[Program(SHELLS), Not(&Bare), Not(&Exactly(&["--version"]))])),
    command(UNIX_SHELL, 0.9, All(&[Program(SHELLS), Piped])),
    command(UNIX_SHELL, 0.5, All(&[Program(SHELLS), Bare, Not(&Piped)])),
    command(UNIX_SHELL, 0.8, Invoked(&["./", "/tmp/", "/var/tmp/", "/dev/shm/", "/var/run/", "/mnt/"])),
    command(UNIX_SHELL, 0.7, Program(&["eval", "source", "."])),
    command(UNIX_SHELL, 0.6, All(&[Invoked(&["$"]), Bare])),
    command(PYTHON, 0.8, All(&[Test(is_python), Not(&Bare), Not(&Exactly(&["--version", "-V"]))])),
    command(
        NETWORK_DEVICE_CLI,
        0.8,
        All(&[Program(&["enable", "system", "shell", "linuxshell", "config", "configure"]), Bare]),
    ),
    command(NETWORK_DEVICE_CLI, 0.9, Invoked(&["/ip", "/system", "/interface", "/tool", "/user"])),
    command(
        NETWORK_DEVICE_CLI,
        0.9,
        All(&[Program(&["show"]), Exactly(&["version", "running-config", "ip", "interfaces"])]),
    ),
    // Persistence
    command(CRON, 0.95, All(&[Program(&["crontab"]), Not(&Bare), Not(&Exactly(&["-l"]))])),
    // Reading the table is the first half of adding to it.
    command(CRON, 0.4, All(&[Program(&["crontab"]), Exactly(&["-l"])])),
    command(
        CRON,
        0.9,
        Any(&[Writes(CRON_FILES), All(&[Program(&["cp", "mv", "tee", "sed", "ln"]), Argument(CRON_FILES)])]),
    ),
    command(SSH_AUTHORIZED_KEYS, 0.95, Writes(&["authorized_keys"])),
    command(SSH_AUTHORIZED_KEYS, 0.7, All(&[Not(&READS), Argument(&["authorized_keys"])])),
    command(SSH_AUTHORIZED_KEYS, 0.5, All(&[READS, Argument(&["authorized_keys"])])),
    command(CREATE_LOCAL_ACCOUNT, 0.95, Program(&["useradd", "adduser"])),
    command(CREATE_LOCAL_ACCOUNT, 0.9, Writes(&["/etc/passwd", "/etc/shadow"])),
    command(ACCOUNT_MANIPULATION, 0.9, Program(&["chpasswd", "passwd", "usermod", "gpasswd"])),
    command(ACCOUNT_MANIPULATION, 0.9, Writes(&["/etc/sudoers"])),
    command(ACCOUNT_ACCESS_REMOVAL, 0.5, Program(&["chpasswd", "passwd"])),
    command(
        ACCOUNT_ACCESS_REMOVAL,
        0.8,
        Any(&[Program(&["userdel", "deluser"]), All(&[Program(&["usermod"]), Exactly(&["-L"])])]),
    ),
    command(SYSTEMD_SERVICE, 0.8, All(&[Program(&["systemctl"]), Exactly(&["enable", "daemon-reload"])])),
    command(
        SYSTEMD_SERVICE,
        0.9,
        Any(&[Writes(&["/systemd/"]), All(&[Program(&["cp", "mv", "tee"]), Argument(&["/systemd/system"])])]),
    ),
    command(
        RC_SCRIPTS,
        0.9,
        Any(&[
            Writes(&["/etc/rc", "/etc/init.d"]),
            All(&[Program(&["cp", "mv", "tee", "sed"]), Argument(&["/etc/rc", "/etc/init.d"])]),
        ]),
    ),
    command(SHELL_CONFIGURATION, 0.9, Writes(SHELL_PROFILES)),
    command(KERNEL_MODULES, 0.9, Program(&["insmod", "modprobe"])),
    command(
        LINKER_HIJACKING,
        0.9,
        Any(&[
            Assigns(&["LD_PRELOAD="]),
            Argument(&["LD_PRELOAD=", "/etc/ld.so.preload"]),
            Writes(&["/etc/ld.so.preload"]),
        ]),
    ),
    // Privileges
    command(SUDO, 0.6, Any(&[Wrapper("sudo"), Program(&["sudo"])])),
    command(SETUID, 0.9, All(&[Program(&["chmod"]), Exactly(&["+s", "u+s", "4755", "4777", "6755"])])),
    // Covering up
    command(CLEAR_HISTORY, 0.95, All(&[Program(&["history"]), Exactly(&["-c", "-cw", "-w"])])),
    command(CLEAR_HISTORY, 0.95, Any(&[Writes(HISTORY_FILES), All(&[Not(&READS), Argument(HISTORY_FILES)])])),
    command(
        IMPAIR_HISTORY,
        0.95,
        All(&[
            Program(&["unset", "export", "set"]),
            Argument(&["HISTFILE", "HISTSIZE", "HISTFILESIZE", "HISTSAVE", "HISTLOG", "HISTCONTROL"]),
        ]),
    ),
    command(IMPAIR_HISTORY, 0.9, Assigns(&["HISTFILE=", "HISTSIZE=", "HISTFILESIZE="])),
    command(IMPAIR_HISTORY, 0.9, All(&[Program(&["set"]), Exactly(&["+o"]), Exactly(&["history"])])),
    command(
        CLEAR_SYSTEM_LOGS,
        0.95,
        Any(&[Writes(LOG_FILES), All(&[Program(&["rm", "shred", "truncate", "unlink", "dd"]), Argument(LOG_FILES)])]),
    ),
    command(CLEAR_SYSTEM_LOGS, 0.9, All(&[Program(&["journalctl"]), Argument(&["--vacuum", "--rotate"])])),
    command(FILE_DELETION, 0.8, Program(&["rm", "shred", "unlink"])),
    command(TIMESTOMP, 0.8, All(&[Program(&["touch"]), Exactly(&["-t", "-r", "-d", "-acmr", "-mt"])])),
    command(FILE_PERMISSIONS, 0.8, Program(&["chmod", "chown", "chattr", "lockr", "setfacl"])),
    command(
        HIDDEN_FILES,
        0.6,
        All(&[Program(&["mkdir", "touch", "mv", "cp"]), Argument(&["/tmp/.", "/dev/shm/.", "/var/tmp/.", "/..."])]),
    ),
    command(
        DISABLE_FIREWALL,
        0.9,
        All(&[Program(&["iptables", "ip6tables", "nft"]), Exactly(&["-F", "--flush", "flush", "-X"])]),
    ),
    command(DISABLE_FIREWALL, 0.9, All(&[Program(&["ufw"]), Exactly(&["disable"])])),
    command(DISABLE_FIREWALL, 0.9, All(&[STOPS, Argument(&["firewalld", "iptables", "ufw"])])),
    command(DISABLE_TOOLS, 0.9, Any(&[All(&[Program(&["setenforce"]), Exactly(&["0"])]), Program(&["aa-teardown"])])),
    command(DISABLE_TOOLS, 0.9, All(&[Any(&[STOPS, KILLS]), Argument(DEFENDERS)])),
    command(OBFUSCATION, 0.7, All(&[Program(&["echo", "printf"]), Text(&["\\x"])])),
    command(OBFUSCATION, 0.8, Test(decodes_base64)),
    command(DEOBFUSCATION, 0.9, Test(decodes_base64)),
    command(DEOBFUSCATION, 0.7, All(&[Program(&["xxd"]), Exactly(&["-r"])])),
    command(SANDBOX_CHECKS, 0.7, Test(is_busybox_probe)),
    command(SANDBOX_CHECKS, 0.4, All(&[READS, Argument(&["/dev/urandom", "/proc/self/exe", "/bin/echo"])])),
    // Credentials
    command(
        PASSWD_AND_SHADOW,
        0.95,
        All(&[Not(&Program(&["echo", "printf"])), Argument(&["/etc/shadow", "/etc/gshadow"])]),
    ),
    command(SHELL_HISTORY, 0.9, All(&[READS, Argument(HISTORY_FILES)])),
    command(PRIVATE_KEYS, 0.9, Argument(&["id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", "/etc/ssl/private"])),
    command(
        CREDENTIALS_IN_FILES,
        0.9,
        All(&[
            READS,
            Argument(&[
                ".aws/credentials",
                ".env",
                ".git-credentials",
                ".netrc",
                ".my.cnf",
                "wp-config.php",
                ".docker/config.json",
                ".pgpass",
                ".kube/config",
            ]),
        ]),
    ),
    command(
        CREDENTIALS_IN_FILES,
        0.7,
        All(&[Program(&["grep", "find", "egrep"]), Argument(&["password", "passwd=", "secret", "AKIA", "api_key"])]),
    ),
    // Looking around
    command(
        SYSTEM_INFORMATION,
        0.9,
        Program(&[
            "uname",
            "lscpu",
            "hostname",
            "hostnamectl",
            "uptime",
            "nproc",
            "free",
            "df",
            "lsblk",
            "dmidecode",
            "lspci",
            "lshw",
            "arch",
            "lsb_release",
            "getconf",
            "nvidia-smi",
            "dmesg",
            "locale",
        ]),
    ),
    command(
        SYSTEM_INFORMATION,
        0.9,
        All(&[
            READS,
            Argument(&[
                "/proc/cpuinfo",
                "/proc/meminfo",
                "/proc/version",
                "/etc/os-release",
                "/etc/issue",
                "-release",
                "/proc/mounts",
                "/proc/uptime",
                "/sys/class/dmi",
            ]),
        ]),
    ),
    command(SYSTEM_INFORMATION, 0.5, Test(is_busybox_probe)),
    command(
        OWNER_OR_USER,
        0.9,
        Program(&["whoami", "id", "w", "who", "last", "lastlog", "users", "logname", "finger"]),
    ),
    command(
        LOCAL_ACCOUNTS,
        0.9,
        Any(&[All(&[READS, Argument(&["/etc/passwd"])]), All(&[Program(&["getent"]), Exactly(&["passwd"])])]),
    ),
    command(LOCAL_GROUPS, 0.9, Any(&[Program(&["groups"]), All(&[READS, Argument(&["/etc/group"])])])),
    command(
        NETWORK_CONFIGURATION,
        0.9,
        Program(&["ifconfig", "ip", "route", "iwconfig", "nmcli", "resolvectl", "arp"]),
    ),
    command(
        NETWORK_CONFIGURATION,
        0.9,
        Any(&[
            Invoked(&["/ip"]),
            All(&[READS, Argument(&["/etc/resolv.conf", "/etc/hosts", "/proc/net", "/etc/network"])]),
        ]),
    ),
    command(
        NETWORK_CONFIGURATION,
        0.7,
        Argument(&["ifconfig.me", "ipinfo.io", "icanhazip.com", "api.ipify.org", "checkip.", "ip.sb"]),
    ),
    command(NETWORK_CONNECTIONS, 0.9, Program(&["netstat", "ss", "lsof"])),
    command(
        PROCESSES,
        0.9,
        Any(&[
            Program(&["ps", "top", "htop", "pgrep", "pidof", "pstree"]),
            All(&[Program(&["ls"]), Argument(&["/proc"])]),
        ]),
    ),
    command(
        FILES_AND_DIRECTORIES,
        0.7,
        Program(&["ls", "dir", "find", "locate", "tree", "stat", "which", "whereis", "pwd", "du"]),
    ),
    command(
        SOFTWARE,
        0.8,
        Any(&[Program(&["dpkg", "rpm"]), All(&[Program(&["apt", "yum", "pip"]), Exactly(&["list"])])]),
    ),
    command(NETWORK_SERVICES, 0.9, Program(&["nmap", "masscan", "zmap", "rustscan", "pnscan", "zgrab"])),
    command(
        REMOTE_SYSTEMS,
        0.7,
        Any(&[Program(&["ping", "fping", "arp-scan"]), All(&[READS, Argument(&["known_hosts"])])]),
    ),
    // Onwards and outwards
    command(REMOTE_SSH, 0.7, All(&[Program(&["ssh", "sshpass"]), Not(&Bare)])),
    command(PROTOCOL_TUNNELING, 0.8, All(&[Program(&["ssh"]), Exactly(&["-L", "-R", "-D", "-w"])])),
    command(PROTOCOL_TUNNELING, 0.8, Program(&["ngrok", "chisel", "frpc", "cloudflared", "iodine"])),
    command(PROXY, 0.8, Program(&["3proxy", "microsocks", "gost", "privoxy", "squid", "proxychains", "proxychains4"])),
    command(
        NON_APPLICATION_PROTOCOL,
        0.95,
        Any(&[Writes(&["/dev/tcp/", "/dev/udp/"]), Argument(&["/dev/tcp/", "/dev/udp/"])]),
    ),
    command(NON_APPLICATION_PROTOCOL, 0.9, All(&[Program(NETCATS), Exactly(&["-e", "-c", "--exec", "-lvp", "-lp"])])),
    command(NON_APPLICATION_PROTOCOL, 0.6, Program(NETCATS)),
    command(NON_APPLICATION_PROTOCOL, 0.8, Program(&["socat"])),
    command(
        UNIX_SHELL,
        0.95,
        Any(&[Writes(&["/dev/tcp/", "/dev/udp/"]), All(&[Program(NETCATS), Argument(&["/bin/sh", "/bin/bash"])])]),
    ),
    command(
        ARCHIVE,
        0.6,
        All(&[
            Program(&["tar", "zip", "7z", "rar"]),
            Not(&Exactly(&["-xf", "-xzf", "xzf", "-xvf", "xvf", "-xvzf", "xvzf", "zxvf"])),
        ]),
    ),
    command(
        EXFILTRATION,
        0.8,
        All(&[
            Program(&["curl", "wget"]),
            Any(&[Exactly(&["-T", "-F", "--upload-file"]), Argument(&["--post-file", "--data-binary"])]),
        ]),
    ),
    // Damage and gain
    command(
        RESOURCE_HIJACKING,
        0.95,
        Any(&[
            Program(MINERS),
            Argument(&[
                "stratum+tcp",
                "stratum+ssl",
                "--donate-level",
                "nicehash",
                "minexmr",
                "moneroocean",
                "supportxmr",
            ]),
        ]),
    ),
    // Killing a rival miner is how the next one makes room.
    command(RESOURCE_HIJACKING, 0.6, All(&[Not(&Program(MINERS)), Argument(MINERS)])),
    command(SERVICE_STOP, 0.7, Any(&[STOPS, All(&[KILLS, Not(&Bare)])])),
    command(SHUTDOWN, 0.9, Program(&["reboot", "shutdown", "poweroff", "halt"])),
    command(DATA_DESTRUCTION, 0.9, All(&[Program(&["rm"]), Exactly(&["/", "/*", "--no-preserve-root"])])),
    command(
        DATA_DESTRUCTION,
        0.9,
        Any(&[
            Program(&["mkfs", "mkfs.ext4", "wipefs"]),
            All(&[Program(&["dd"]), Argument(&["of=/dev/sd", "of=/dev/mtd", "of=/dev/mmc", "of=/dev/vd"])]),
        ]),
    ),
    command(
        UNIX_SHELL,
        0.7,
        All(&[Program(&["cp", "mv", "dd"]), Argument(&["/bin/busybox", "/bin/sh"]), Argument(SCRATCH)]),
    ),
];

pub const LINE_RULES: &[LineRule] = &[
    line(OS_EXHAUSTION, 0.95, &[":|:"]),
    line(OS_EXHAUSTION, 0.9, &["(){", ".|.&"]),
    line(NON_APPLICATION_PROTOCOL, 0.9, &["mkfifo", "nc "]),
    line(NON_APPLICATION_PROTOCOL, 0.9, &["socket", "connect(", "dup2"]),
    line(NON_APPLICATION_PROTOCOL, 0.9, &["fsockopen", "exec("]),
    line(UNIX_SHELL, 0.9, &["socket", "connect(", "/bin/sh"]),
];

pub const EVENT_RULES: &[EventRule] = &[
    event("login_failed", BRUTE_FORCE, 0.6, "username", &[]),
    event("login_success", VALID_ACCOUNTS, 0.8, "username", &[]),
    event(
        "client_version",
        ACTIVE_SCANNING,
        0.9,
        "version",
        &["Nmap", "nmap", "ZGrab", "zgrab", "masscan", "HTTP/1", "libssh-scan"],
    ),
    event("password_change", ACCOUNT_MANIPULATION, 0.9, "username", &[]),
    event("password_change", ACCOUNT_ACCESS_REMOVAL, 0.5, "username", &[]),
    event("file_download", INGRESS_TOOL_TRANSFER, 0.95, "url", &["://"]),
    event("file_download_failed", INGRESS_TOOL_TRANSFER, 0.8, "url", &["://"]),
    // Cowrie also calls it a download when a command's output is redirected to a file.
    event("file_download", SSH_AUTHORIZED_KEYS, 0.95, "destfile", &["authorized_keys"]),
    event("file_download", CLEAR_SYSTEM_LOGS, 0.9, "destfile", LOG_FILES),
    event("file_download", CRON, 0.9, "destfile", CRON_FILES),
    event("file_upload", INGRESS_TOOL_TRANSFER, 0.9, "filename", &[]),
    event("tunnel_request", PROTOCOL_TUNNELING, 0.8, "dst_ip", &[]),
    event("tunnel_request", PROXY, 0.6, "dst_ip", &[]),
    event("tunnel_data", PROXY, 0.7, "dst_ip", &[]),
];

fn is_python(command: &Command) -> bool {
    command.program.starts_with("python")
}

/// `/bin/busybox MIRAI`: bots ask for an applet that cannot exist, and only a real shell answers "applet not found".
fn is_busybox_probe(command: &Command) -> bool {
    const APPLET_LETTERS_MIN: usize = 4;
    command.wrappers.iter().any(|wrapper| wrapper == "busybox")
        && command.program.len() >= APPLET_LETTERS_MIN
        && command.program.bytes().all(|byte| byte.is_ascii_uppercase())
}
