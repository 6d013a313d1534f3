//! Where an indicator leads: most that are not public are of no use in a block list, and that is the reader's to decide.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Names that RFC 2606, RFC 6761 and RFC 6762 keep for private use, examples and tests.
const RESERVED_NAMES: &[&str] = &[
    "example.com",
    "example.net",
    "example.org",
    "example",
    "test",
    "invalid",
    "localhost",
    "local",
    "internal",
    "onion",
];

pub fn of_address(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(address) => of_v4(address),
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(mapped) => of_v4(mapped),
            None => of_v6(address),
        },
    }
}

fn of_v4(address: Ipv4Addr) -> &'static str {
    match address.octets() {
        [127, ..] => "loopback",
        [10, ..] | [192, 168, ..] | [172, 16..=31, ..] => "private",
        [100, 64..=127, ..] => "shared",
        [169, 254, ..] => "link_local",
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "documentation",
        [224..=239, ..] => "multicast",
        [0, ..] | [240..=255, ..] | [192, 0, 0, _] | [198, 18..=19, ..] => "reserved",
        _ => "public",
    }
}

fn of_v6(address: Ipv6Addr) -> &'static str {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => "loopback",
        [0, 0, 0, 0, 0, 0, 0, 0] => "reserved",
        [0xfc00..=0xfdff, ..] => "private",
        [0xfe80..=0xfebf, ..] => "link_local",
        [0xff00..=0xffff, ..] => "multicast",
        [0x2001, 0xdb8, ..] => "documentation",
        _ => "public",
    }
}

/// The scope of a name or address that stands as a host.
pub fn of_host(host: &str) -> &'static str {
    if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return of_address(address);
    }
    let host = host.to_ascii_lowercase();
    let is_reserved = RESERVED_NAMES.iter().any(|name| match host.strip_suffix(name) {
        Some(front) => front.is_empty() || front.ends_with('.'),
        None => false,
    });
    if is_reserved { "reserved" } else { "public" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_address_has_its_scope() {
        for (host, scope) in [
            ("127.10.5.23", "loopback"),
            ("10.1.2.3", "private"),
            ("172.31.0.1", "private"),
            ("172.32.0.1", "public"),
            ("192.168.0.1", "private"),
            ("100.64.0.1", "shared"),
            ("169.254.169.254", "link_local"),
            ("203.0.113.9", "documentation"),
            ("0.0.0.0", "reserved"),
            ("255.255.255.255", "reserved"),
            ("239.1.1.1", "multicast"),
            ("8.8.8.8", "public"),
            ("::1", "loopback"),
            ("fe80::1", "link_local"),
            ("fd00::1", "private"),
            ("2001:db8::1", "documentation"),
            ("[2606:4700::1111]", "public"),
            ("::ffff:10.0.0.1", "private"),
            ("mail.example.com", "reserved"),
            ("notexample.com", "public"),
            ("localhost", "reserved"),
            ("evil.ru", "public"),
        ] {
            assert_eq!(of_host(host), scope, "{host}");
        }
    }
}
