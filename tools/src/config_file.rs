//! TOML files: read with errors that name file, line, key and the nearest key that exists.

use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::cli::{ConfigCheckArgs, ServerKind};
use crate::failure::{Context, Exit, Failure, Result};
use crate::output::say;

/// How alike a wrong and a right key must be for the right one to be proposed.
const ALIKE: f64 = 0.7;

/// Reads a file into `T`.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse(&read(path)?, path)
}

/// Reads `text`, the content of `path`, into `T`.
pub(crate) fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        Failure::new(format!(
            "{}:{line}: {}",
            path.display(),
            explain(error.message())
        ))
    })
}

/// `emberfs config check FILE`.
pub(crate) fn check(args: &ConfigCheckArgs) -> Result<Exit> {
    let text = read(&args.file)?;
    let kind = args.kind.unwrap_or_else(|| guess(&text));
    match kind {
        ServerKind::Meta => {
            let config: emberfs_meta::config::MetaConfig = parse(&text, &args.file)?;
            config.validate().context(args.file.display())?;
        }
        ServerKind::Storage => {
            let config: emberfs_storage::config::StorageConfig = parse(&text, &args.file)?;
            config.validate().context(args.file.display())?;
        }
    }
    say(format_args!(
        "{}: valid for `emberfs {}`",
        args.file.display(),
        match kind {
            ServerKind::Meta => "meta",
            ServerKind::Storage => "storage",
        }
    ))?;
    Ok(Exit::Success)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).context(format!("cannot read {}", path.display()))
}

fn guess(text: &str) -> ServerKind {
    let table: toml::Table = toml::from_str(text).unwrap_or_default();
    if table.contains_key("disks") || table.contains_key("node") {
        ServerKind::Storage
    } else {
        ServerKind::Meta
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.get(..at)
        .map_or(1, |before| before.matches('\n').count() + 1)
}

/// Adds the nearest known key to serde's "unknown field `x`, expected one of `a`, `b`".
fn explain(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let Some((&wrong, known)) = quoted.split_first() else {
        return message.to_owned();
    };
    if !message.starts_with("unknown field") {
        return message.to_owned();
    }
    let alike = |key: &&&str| strsim::jaro_winkler(wrong, key);
    match known.iter().max_by(|a, b| alike(a).total_cmp(&alike(b))) {
        Some(nearest) if alike(&nearest) >= ALIKE => {
            format!("unknown key `{wrong}`: did you mean `{nearest}`?")
        }
        _ => format!("unknown key `{wrong}`: known are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[serde(default)]
        listen: String,
        #[serde(default)]
        lease_ms: u32,
    }

    fn error(text: &str) -> String {
        let parsed = parse::<Sample>(text, Path::new("/etc/x.toml"));
        parsed.expect_err("must be refused").to_string()
    }

    #[test]
    fn a_mistyped_key_is_named_with_file_line_and_the_right_key() {
        let text = "# comment\nlisten = \"a\"\nlease_m = 5\n";
        assert_eq!(
            error(text),
            "/etc/x.toml:3: unknown key `lease_m`: did you mean `lease_ms`?"
        );
    }

    #[test]
    fn a_key_like_no_other_lists_those_that_exist() {
        assert_eq!(
            error("q = 5"),
            "/etc/x.toml:1: unknown key `q`: known are listen, lease_ms"
        );
    }

    #[test]
    fn a_wrong_type_and_broken_syntax_name_their_line() {
        assert!(error("\nlease_ms = \"5\"").starts_with("/etc/x.toml:2: invalid type"));
        assert!(error("\n\nlisten = ").starts_with("/etc/x.toml:3: "));
    }

    #[test]
    fn a_right_file_is_read() {
        let sample: Sample = parse("listen = \"a\"\nlease_ms = 7", Path::new("x")).expect("valid");
        assert_eq!((sample.listen.as_str(), sample.lease_ms), ("a", 7));
    }
}
