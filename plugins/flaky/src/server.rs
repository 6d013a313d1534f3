//! Whom a download asks. This is the only file in which the two versions differ.

/// The server that a download command names.
///
/// # Panics
///
/// On a command without `://`. Every download that the author had seen was wget or curl with a URL; then came
/// `tftp -g -r arm7 203.0.113.9`.
#[cfg(feature = "v1")]
#[allow(clippy::unwrap_used, reason = "this is the bug that version 1 is here to show")]
pub fn named_in(command: &str) -> Option<&str> {
    let after = command.split("://").nth(1).unwrap();
    after.split(is_end_of_server).next()
}

/// The server that a download command names: a URL's, or else the first word that has the shape of an address or a name
/// in the domain name system; none when there is neither.
#[cfg(not(feature = "v1"))]
pub fn named_in(command: &str) -> Option<&str> {
    if let Some((_, after)) = command.split_once("://") {
        return after.split(is_end_of_server).next().filter(|server| !server.is_empty());
    }
    let has_shape = |word: &&str| word.contains('.') && !word.starts_with(['.', '/', '-']) && !word.contains('/');
    let is_address = |word: &&str| word.parse::<std::net::IpAddr>().is_ok();
    let words = || command.split_whitespace().skip(1);
    words().find(is_address).or_else(|| words().find(has_shape))
}

fn is_end_of_server(character: char) -> bool {
    character.is_whitespace() || matches!(character, '/' | '?' | ';' | '|' | '&' | '"' | '\'' | ')')
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITH_URL: &[(&str, &str)] = &[
        ("curl -O http://127.0.0.1:8099/x86_64; chmod +x x86_64; ./x86_64", "127.0.0.1:8099"),
        ("wget https://host.example.org", "host.example.org"),
        ("wget 'http://日本.example.org/x'", "日本.example.org"),
    ];
    const WITHOUT_URL: &[(&str, Option<&str>)] = &[
        ("tftp -g -r arm7 127.0.0.1", Some("127.0.0.1")),
        ("ftpget 127.0.0.1 mips mips", Some("127.0.0.1")),
        ("wget host.example.org", Some("host.example.org")),
        ("wget", None),
        ("", None),
    ];

    #[test]
    fn the_server_of_a_url_is_found() {
        for (command, server) in WITH_URL {
            assert_eq!(named_in(command), Some(*server));
        }
    }

    #[cfg(not(feature = "v1"))]
    #[test]
    fn the_second_version_finds_a_server_without_a_url() {
        for (command, server) in WITHOUT_URL {
            assert_eq!(named_in(command), *server, "{command}");
        }
        assert_eq!(named_in("wget http://"), None);
    }

    #[cfg(feature = "v1")]
    #[test]
    fn the_first_version_panics_without_a_url() {
        for (command, _) in WITHOUT_URL {
            assert!(std::panic::catch_unwind(|| named_in(command)).is_err(), "{command}");
        }
    }
}
