//! Times and spans as people write them.

/// `2026-11-30T02:43:37.123456789`, in UTC, of nanoseconds since 1970.
pub(crate) fn exact(nanos: u64) -> String {
    let (seconds, nanos) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}")
}

/// `2026-11-30 02:43:37`, in UTC, of nanoseconds since 1970.
pub(crate) fn to_seconds(nanos: u64) -> String {
    exact(nanos)[..19].replace('T', " ")
}

/// Year, month and day of a number of days since 1970: years that begin in March end with the leap day.
fn date(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097;
    let days = days + 719_468;
    let of_era = days % ERA;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = year_of_era + days / ERA * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// Reads `90s`, `30m`, `12h`, `7d`, `2w`; answers seconds.
pub(crate) fn parse_span(text: &str) -> Result<u64, String> {
    let expected = || "write a number and s, m, h, d or w, such as 7d".to_owned();
    let unit = text.chars().last().ok_or_else(expected)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        'w' => 7 * 86_400,
        _ => return Err(expected()),
    };
    let number = text.strip_suffix(unit).unwrap_or_default();
    let number: u64 = number.parse().map_err(|_| expected())?;
    match number.checked_mul(seconds) {
        Some(span) if span > 0 => Ok(span),
        _ => Err("must be from 1s to ten years".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        let second = 1_000_000_000;
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_799, "2000-02-29 23:59:59"),
            (1_709_164_800, "2024-02-29 00:00:00"),
            (1_709_251_200, "2024-03-01 00:00:00"),
            (1_798_761_599, "2026-12-31 23:59:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(to_seconds(seconds * second), expected);
        }
        assert_eq!(exact(5), "1970-01-01T00:00:00.000000005");
    }

    #[test]
    fn spans_have_units() {
        assert_eq!(parse_span("90s"), Ok(90));
        assert_eq!(parse_span("7d"), Ok(604_800));
        assert_eq!(parse_span("2w"), Ok(14 * 86_400));
        for bad in [
            "",
            "7",
            "d",
            "0d",
            "-1h",
            "1.5h",
            "7 d",
            "99999999999999999w",
        ] {
            assert!(parse_span(bad).is_err(), "{bad}");
        }
    }
}
