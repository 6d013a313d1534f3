//! The techniques that the rules can name, as MITRE ATT&CK for Enterprise calls them.

/// One technique, and what seeing it asks for.
#[derive(Debug, PartialEq)]
pub struct Technique {
    pub id: &'static str,
    pub name: &'static str,
    pub tactic: &'static str,
    /// How grave it is: 1 low, 2 normal, 3 high, 4 critical.
    pub priority: u8,
    /// The answer, one of the twenty action values of Cyber Mirage.
    pub response: &'static str,
}

macro_rules! techniques {
    ($($constant:ident: $id:literal $name:literal, $tactic:literal, $priority:literal, $response:literal;)*) => {
        $(pub const $constant: Technique =
            Technique { id: $id, name: $name, tactic: $tactic, priority: $priority, response: $response };)*
        /// All of them, for whoever lists or checks them.
        pub const ALL: &[Technique] = &[$($constant),*];
    };
}

techniques! {
    ACTIVE_SCANNING: "T1595" "Active Scanning", "Reconnaissance", 1, "fingerprint";
    VALID_ACCOUNTS: "T1078" "Valid Accounts", "Initial Access", 3, "maintain_session";
    UNIX_SHELL: "T1059.004" "Unix Shell", "Execution", 3, "capture_tools";
    PYTHON: "T1059.006" "Python", "Execution", 3, "capture_tools";
    NETWORK_DEVICE_CLI: "T1059.008" "Network Device CLI", "Execution", 2, "fingerprint";
    CRON: "T1053.003" "Cron", "Persistence", 4, "alert_track";
    ACCOUNT_MANIPULATION: "T1098" "Account Manipulation", "Persistence", 4, "alert_track";
    SSH_AUTHORIZED_KEYS: "T1098.004" "SSH Authorized Keys", "Persistence", 4, "alert_track";
    CREATE_LOCAL_ACCOUNT: "T1136.001" "Local Account", "Persistence", 4, "alert_track";
    SYSTEMD_SERVICE: "T1543.002" "Systemd Service", "Persistence", 4, "alert_track";
    RC_SCRIPTS: "T1037.004" "RC Scripts", "Persistence", 4, "alert_track";
    SHELL_CONFIGURATION: "T1546.004" "Unix Shell Configuration Modification", "Persistence", 4, "alert_track";
    KERNEL_MODULES: "T1547.006" "Kernel Modules and Extensions", "Persistence", 4, "alert_track";
    LINKER_HIJACKING: "T1574.006" "Dynamic Linker Hijacking", "Persistence", 4, "alert_track";
    SETUID: "T1548.001" "Setuid and Setgid", "Privilege Escalation", 3, "alert_track";
    SUDO: "T1548.003" "Sudo and Sudo Caching", "Privilege Escalation", 2, "log_enhanced";
    OBFUSCATION: "T1027" "Obfuscated Files or Information", "Defense Evasion", 3, "log_enhanced";
    DEOBFUSCATION: "T1140" "Deobfuscate/Decode Files or Information", "Defense Evasion", 3, "log_enhanced";
    CLEAR_SYSTEM_LOGS: "T1070.002" "Clear Linux or Mac System Logs", "Defense Evasion", 4, "alert_track";
    CLEAR_HISTORY: "T1070.003" "Clear Command History", "Defense Evasion", 3, "log_enhanced";
    FILE_DELETION: "T1070.004" "File Deletion", "Defense Evasion", 2, "log_enhanced";
    TIMESTOMP: "T1070.006" "Timestomp", "Defense Evasion", 3, "log_enhanced";
    FILE_PERMISSIONS: "T1222.002" "Linux and Mac File and Directory Permissions Modification", "Defense Evasion", 2, "log_enhanced";
    HIDDEN_FILES: "T1564.001" "Hidden Files and Directories", "Defense Evasion", 2, "log_enhanced";
    DISABLE_TOOLS: "T1562.001" "Disable or Modify Tools", "Defense Evasion", 4, "alert_track";
    IMPAIR_HISTORY: "T1562.003" "Impair Command History Logging", "Defense Evasion", 3, "log_enhanced";
    DISABLE_FIREWALL: "T1562.004" "Disable or Modify System Firewall", "Defense Evasion", 4, "alert_track";
    SANDBOX_CHECKS: "T1497.001" "System Checks", "Defense Evasion", 2, "mimic_vulnerable";
    BRUTE_FORCE: "T1110" "Brute Force", "Credential Access", 2, "progressive_delay";
    PASSWD_AND_SHADOW: "T1003.008" "/etc/passwd and /etc/shadow", "Credential Access", 4, "inject_fake_creds";
    CREDENTIALS_IN_FILES: "T1552.001" "Credentials In Files", "Credential Access", 4, "inject_fake_creds";
    SHELL_HISTORY: "T1552.003" "Shell History", "Credential Access", 3, "inject_fake_creds";
    PRIVATE_KEYS: "T1552.004" "Private Keys", "Credential Access", 4, "inject_fake_creds";
    NETWORK_CONFIGURATION: "T1016" "System Network Configuration Discovery", "Discovery", 2, "log_enhanced";
    REMOTE_SYSTEMS: "T1018" "Remote System Discovery", "Discovery", 2, "log_enhanced";
    OWNER_OR_USER: "T1033" "System Owner/User Discovery", "Discovery", 2, "log_enhanced";
    NETWORK_SERVICES: "T1046" "Network Service Discovery", "Discovery", 3, "simulate_target";
    NETWORK_CONNECTIONS: "T1049" "System Network Connections Discovery", "Discovery", 2, "log_enhanced";
    PROCESSES: "T1057" "Process Discovery", "Discovery", 2, "log_enhanced";
    LOCAL_GROUPS: "T1069.001" "Local Groups", "Discovery", 2, "log_enhanced";
    SYSTEM_INFORMATION: "T1082" "System Information Discovery", "Discovery", 2, "log_enhanced";
    FILES_AND_DIRECTORIES: "T1083" "File and Directory Discovery", "Discovery", 2, "log_enhanced";
    LOCAL_ACCOUNTS: "T1087.001" "Local Account", "Discovery", 2, "log_enhanced";
    SOFTWARE: "T1518" "Software Discovery", "Discovery", 2, "log_enhanced";
    REMOTE_SSH: "T1021.004" "SSH", "Lateral Movement", 3, "simulate_target";
    ARCHIVE: "T1560.001" "Archive via Utility", "Collection", 3, "log_enhanced";
    EXFILTRATION: "T1048" "Exfiltration Over Alternative Protocol", "Exfiltration", 4, "alert_track";
    PROXY: "T1090" "Proxy", "Command and Control", 3, "redirect_session";
    NON_APPLICATION_PROTOCOL: "T1095" "Non-Application Layer Protocol", "Command and Control", 4, "alert_track";
    INGRESS_TOOL_TRANSFER: "T1105" "Ingress Tool Transfer", "Command and Control", 4, "capture_tools";
    PROTOCOL_TUNNELING: "T1572" "Protocol Tunneling", "Command and Control", 3, "redirect_session";
    DATA_DESTRUCTION: "T1485" "Data Destruction", "Impact", 4, "alert_track";
    SERVICE_STOP: "T1489" "Service Stop", "Impact", 3, "alert_track";
    RESOURCE_HIJACKING: "T1496" "Resource Hijacking", "Impact", 4, "throttle_session";
    OS_EXHAUSTION: "T1499.001" "OS Exhaustion Flood", "Impact", 4, "throttle_session";
    SHUTDOWN: "T1529" "System Shutdown/Reboot", "Impact", 3, "log_enhanced";
    ACCOUNT_ACCESS_REMOVAL: "T1531" "Account Access Removal", "Impact", 4, "alert_track";
}
