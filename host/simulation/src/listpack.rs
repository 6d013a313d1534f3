//! How many bytes Redis needs for a stream's entries in a listpack. A stream's node is full by bytes or by entries, and
//! `XTRIM ~` removes whole nodes, so what it removes depends on this.

/// The header and the end of an empty listpack.
pub(crate) const EMPTY: usize = 7;

/// Bytes of an integer element.
pub(crate) fn integer(value: i64) -> usize {
    let encoded = match value {
        0..=127 => 1,
        -4_096..=4_095 => 2,
        -32_768..=32_767 => 3,
        -8_388_608..=8_388_607 => 4,
        -2_147_483_648..=2_147_483_647 => 5,
        _ => 9,
    };
    encoded + back_length(encoded)
}

/// Bytes of a string element; a string that is the decimal form of a number is kept as that number.
pub(crate) fn string(text: &[u8]) -> usize {
    if let Some(value) = decimal(text) {
        return integer(value);
    }
    let encoded = text.len()
        + match text.len() {
            0..64 => 1,
            64..4_096 => 2,
            _ => 5,
        };
    encoded + back_length(encoded)
}

fn back_length(encoded: usize) -> usize {
    match encoded {
        0..=127 => 1,
        128..16_383 => 2,
        16_383..2_097_151 => 3,
        2_097_151..268_435_455 => 4,
        _ => 5,
    }
}

/// A number in its only decimal form: no sign but a minus, no leading zeros.
pub(crate) fn decimal(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let negative = digits.len() < text.len();
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', rest @ ..] if text.len() <= 20 && rest.iter().all(u8::is_ascii_digit) => {}
        _ => return None,
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_one_decimal_form_is_a_number() {
        let all = ["0", "-1", "9223372036854775807", "-9223372036854775808", "127", "-0", "01", "+1", "", "-", "1a"];
        let read: Vec<_> = all.iter().filter_map(|text| decimal(text.as_bytes())).collect();
        assert_eq!(read, [0, -1, i64::MAX, i64::MIN, 127]);
        assert_eq!(decimal(b"9223372036854775808"), None);
    }
}
