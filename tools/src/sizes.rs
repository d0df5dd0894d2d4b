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
        "p" => 50,
        _ => return Err("write a number and K, M, G, T or P, such as 256M".to_owned()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "write a number, such as 256M".to_owned())?;
    match number.checked_mul(1 << shift) {
        Some(size) if size > 0 => Ok(size),
        _ => Err("must be from 1 byte to 16 EiB".to_owned()),
    }
}

/// Reads how many there are: `4096`, `10K`, `1M`, by thousands.
pub(crate) fn parse_count(text: &str) -> Result<u64, String> {
    let expected = || "write a number, such as 1000 or 5M".to_owned();
    let last = text.chars().last().map(|unit| unit.to_ascii_lowercase());
    let unit: u64 = match last {
        Some('k') => 1000,
        Some('m') => 1_000_000,
        Some('g') => 1_000_000_000,
        _ => 1,
    };
    let digits = if unit == 1 {
        text
    } else {
        &text[..text.len() - 1]
    };
    let number: u64 = digits.parse().map_err(|_| expected())?;
    let count = number.checked_mul(unit).filter(|&count| count > 0);
    count.ok_or_else(expected)
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
    fn counts_have_decimal_units() {
        assert_eq!(parse_count("4096"), Ok(4096));
        assert_eq!(parse_count("10k"), Ok(10_000));
        assert_eq!(parse_count("1M"), Ok(1_000_000));
        for bad in ["", "k", "0", "5x", "-1", "1Mi", "99999999999G", "é"] {
            assert!(parse_count(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("4K"), Ok(4096));
        assert_eq!(parse_bytes("1g"), Ok(1 << 30));
        assert_eq!(parse_bytes("2MiB"), Ok(2 << 20));
        assert_eq!(parse_bytes("3P"), Ok(3 << 50));
        for bad in ["", "K", "0", "5x", "-1", "99999999T"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        assert_eq!((parse_rate("0"), parse_rate("4K")), (Ok(0), Ok(4096)));
    }
}
