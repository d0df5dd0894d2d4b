//! `emberfs settings`: shows and changes what may change while the cluster runs.

use emberfs_proto::cluster::Settings;
use emberfs_proto::pb;
use serde::Serialize;

use crate::cli::SettingsArgs;
use crate::failure::{Context, Exit, Failure, Result};
use crate::output::say;
use crate::rpc::{self, Seat};
use crate::show;
use crate::sizes::parse_rate;

/// The shape of `--json`, for `--help`.
pub(crate) const HELP: &str = "\
Keys (changes are in force everywhere within moments and survive restarts):
  resync_bytes_per_second  what a node sends to returning and moving replicas, such as 200M; 0: no limit
  resync_share_percent     how much of the time a node sends to them while clients use it, 1 to 100
  migrations               replicas that move at the same time in the whole cluster
  migrations_paused        true: no replica moves, what is on its way waits
  scrub_bytes_per_second   what the scrub of a disk reads, such as 32M; 0: no limit
  scrub_interval_seconds   how often the scrub of a disk begins a whole pass, such as 86400; 0: never by itself

JSON: an object with these keys (fields are only ever added)";

/// The settings as `--json` prints them.
#[derive(Serialize)]
struct View {
    resync_bytes_per_second: u64,
    resync_share_percent: u32,
    migrations: u32,
    migrations_paused: bool,
    scrub_bytes_per_second: u64,
    scrub_interval_seconds: u64,
}

impl From<Settings> for View {
    fn from(settings: Settings) -> Self {
        Self {
            resync_bytes_per_second: settings.resync_bytes_per_second,
            resync_share_percent: settings.resync_share_percent,
            migrations: settings.migrations,
            migrations_paused: settings.migrations_paused,
            scrub_bytes_per_second: settings.scrub_bytes_per_second,
            scrub_interval_seconds: settings.scrub_interval_seconds,
        }
    }
}

const KEYS: [&str; 6] = [
    "resync_bytes_per_second",
    "resync_share_percent",
    "migrations",
    "migrations_paused",
    "scrub_bytes_per_second",
    "scrub_interval_seconds",
];

/// `emberfs settings`.
pub(crate) async fn settings(cluster: Option<String>, args: SettingsArgs) -> Result<Exit> {
    let changes = parse(&args.changes)?;
    let seat = Seat::find(cluster, &args.dir)?;
    let settings = configure(&seat.address, changes).await?;
    let text = if args.json {
        let view = View::from(settings);
        serde_json::to_string_pretty(&view).context("cannot write JSON")?
    } else {
        render(&settings)
    };
    say(text)?;
    Ok(Exit::Success)
}

/// Changes settings; answers those then in force.
pub(crate) async fn configure(address: &str, changes: pb::SettingsMsg) -> Result<Settings> {
    let mut manager = rpc::cluster(address).await?;
    let request = pb::ConfigureRequest {
        changes: Some(changes),
    };
    let answer = rpc::answer(address, rpc::CALL_LIMIT, manager.configure(request)).await?;
    Settings::default()
        .with(&answer)
        .map_err(|error| Failure::new(format!("{address} answers: {error}")))
}

fn parse(changes: &[String]) -> Result<pb::SettingsMsg> {
    let mut message = pb::SettingsMsg::default();
    for change in changes {
        let Some((key, value)) = change.split_once('=') else {
            return Err(Failure::new(format!(
                "{change} is no change: write KEY=VALUE, such as migrations=8"
            )));
        };
        let wrong = |expected: &str| Failure::new(format!("{key} = {value}: {expected}"));
        let number = || value.parse().map_err(|_| wrong("write a whole number"));
        let rate = || parse_rate(value).map_err(|expected| wrong(&expected));
        match key {
            "resync_bytes_per_second" => message.resync_bytes_per_second = Some(rate()?),
            "resync_share_percent" => message.resync_share_percent = Some(number()?),
            "migrations" => message.migrations = Some(number()?),
            "migrations_paused" => {
                let paused = value.parse().map_err(|_| wrong("write true or false"))?;
                message.migrations_paused = Some(paused);
            }
            "scrub_bytes_per_second" => message.scrub_bytes_per_second = Some(rate()?),
            "scrub_interval_seconds" => {
                message.scrub_interval_seconds = Some(u64::from(number()?));
            }
            _ => return Err(unknown(key)),
        }
    }
    Ok(message)
}

fn unknown(key: &str) -> Failure {
    let nearest = KEYS
        .iter()
        .max_by(|a, b| strsim::jaro(a, key).total_cmp(&strsim::jaro(b, key)));
    Failure::new(format!(
        "{key} is no setting; did you mean {}? `emberfs settings --help` lists all",
        nearest.unwrap_or(&KEYS[0])
    ))
}

fn render(settings: &Settings) -> String {
    let rate = |bytes: u64| match bytes {
        0 => "no limit".to_owned(),
        _ => format!("{}/s", show::bytes(bytes)),
    };
    let values = [
        (KEYS[0], rate(settings.resync_bytes_per_second)),
        (KEYS[1], format!("{} %", settings.resync_share_percent)),
        (KEYS[2], settings.migrations.to_string()),
        (KEYS[3], settings.migrations_paused.to_string()),
        (KEYS[4], rate(settings.scrub_bytes_per_second)),
        (
            KEYS[5],
            match settings.scrub_interval_seconds {
                0 => "never".to_owned(),
                seconds => show::duration_ms(seconds.saturating_mul(1000)),
            },
        ),
    ];
    let lines = values.map(|(key, value)| format!("{key:<25}{value}"));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(list: &[&str]) -> Result<pb::SettingsMsg> {
        parse(&list.iter().map(|&c| c.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn changes_name_a_key_and_a_value_with_a_unit() {
        let message = changes(&[
            "scrub_bytes_per_second=200M",
            "resync_bytes_per_second=0",
            "resync_share_percent=50",
            "migrations_paused=true",
            "scrub_interval_seconds=60",
        ])
        .expect("valid");
        assert_eq!(message.scrub_bytes_per_second, Some(200 << 20));
        assert_eq!(message.resync_bytes_per_second, Some(0));
        assert_eq!(message.resync_share_percent, Some(50));
        assert_eq!(message.migrations_paused, Some(true));
        assert_eq!(message.scrub_interval_seconds, Some(60));
        assert_eq!(message.migrations, None);
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_be_right() {
        for (bad, hint) in [
            ("migrations", "KEY=VALUE"),
            ("migration=3", "did you mean migrations?"),
            ("migrations=many", "whole number"),
            ("migrations_paused=1", "true or false"),
            ("scrub_bytes_per_second=fast", "256M"),
        ] {
            let error = changes(&[bad]).expect_err(bad).to_string();
            assert!(error.contains(hint), "{bad}: {error}");
        }
    }

    #[test]
    fn every_setting_has_a_line() {
        let text = render(&Settings {
            scrub_bytes_per_second: 0,
            ..Settings::default()
        });
        assert!(KEYS.iter().all(|key| text.contains(key)), "{text}");
        assert!(
            text.contains("no limit") && text.contains("7 d 0 h"),
            "{text}"
        );
    }
}
