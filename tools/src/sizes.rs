//! Sizes as people write them.

/// Reads `4096`, `64K`, `1M`, `2GiB`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit
        .to_ascii_lowercase()
        .trim_end_matches("ib")
        .trim_end_matches('b')
    {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err("write a number and K, M, G or T, such as 256M".to_owned()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "write a number, such as 256M".to_owned())?;
    match number.checked_mul(1 << shift) {
        Some(size) if size > 0 => Ok(size),
        _ => Err("must be from 1 byte to 16 EiB".to_owned()),
    }
}

/// As [`parse_bytes`], bytes per second; `0` is no limit.
pub(crate) fn parse_rate(text: &str) -> Result<u64, String> {
    match text {
        "0" => Ok(0),
        _ => parse_bytes(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("4K"), Ok(4096));
        assert_eq!(parse_bytes("1g"), Ok(1 << 30));
        assert_eq!(parse_bytes("2MiB"), Ok(2 << 20));
        for bad in ["", "K", "0", "5x", "-1", "99999999T"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        assert_eq!((parse_rate("0"), parse_rate("4K")), (Ok(0), Ok(4096)));
    }
}
