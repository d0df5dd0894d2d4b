//! What an operator may change while the cluster runs. Stored with the map and pushed with it, so a
//! change is in force everywhere within milliseconds and survives restarts.

use std::fmt::Write as _;

use crate::error::{Error, ErrorCode, Result};
use crate::pb;

/// Cluster-wide settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What a storage node sends to returning and moving replicas, bytes per second; 0: no limit.
    pub resync_bytes_per_second: u64,
    /// How much of the time a node sends to such replicas while clients use it, percent, 1 to 100.
    pub resync_share_percent: u32,
    /// Replicas that move at the same time, in the whole cluster, at least 1.
    pub migrations: u32,
    /// No further replica begins to move.
    pub migrations_paused: bool,
    /// What a disk's scrub reads, bytes per second; 0: no limit.
    pub scrub_bytes_per_second: u64,
    /// How often a disk's scrub begins a whole pass, seconds; 0: never by itself.
    pub scrub_interval_seconds: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            resync_bytes_per_second: 0,
            resync_share_percent: 20,
            migrations: 4,
            migrations_paused: false,
            scrub_bytes_per_second: 32 << 20,
            scrub_interval_seconds: 7 * 86_400,
        }
    }
}

impl Settings {
    /// Most replicas that may move at the same time.
    pub const MAX_MIGRATIONS: u32 = 1024;

    /// These settings with `changes`, or [`ErrorCode::InvalidArgument`] naming every value out of range.
    pub fn with(self, changes: &pb::SettingsMsg) -> Result<Self> {
        let new = Self {
            resync_bytes_per_second: changes
                .resync_bytes_per_second
                .unwrap_or(self.resync_bytes_per_second),
            resync_share_percent: changes
                .resync_share_percent
                .unwrap_or(self.resync_share_percent),
            migrations: changes.migrations.unwrap_or(self.migrations),
            migrations_paused: changes.migrations_paused.unwrap_or(self.migrations_paused),
            scrub_bytes_per_second: changes
                .scrub_bytes_per_second
                .unwrap_or(self.scrub_bytes_per_second),
            scrub_interval_seconds: changes
                .scrub_interval_seconds
                .unwrap_or(self.scrub_interval_seconds),
        };
        new.validate().map(|()| new)
    }

    fn validate(&self) -> Result<()> {
        let mut wrong = String::new();
        let mut refuse = |name: &str, value: u32, most: u32| {
            if !(1..=most).contains(&value) {
                // Writing to a string cannot fail.
                let _ = write!(wrong, "; {name} = {value} must be from 1 to {most}");
            }
        };
        refuse("resync_share_percent", self.resync_share_percent, 100);
        refuse("migrations", self.migrations, Self::MAX_MIGRATIONS);
        if wrong.is_empty() {
            return Ok(());
        }
        let what = format!("settings unchanged{wrong}");
        Err(Error::new(ErrorCode::InvalidArgument, what))
    }
}

impl From<Settings> for pb::SettingsMsg {
    fn from(settings: Settings) -> Self {
        Self {
            resync_bytes_per_second: Some(settings.resync_bytes_per_second),
            resync_share_percent: Some(settings.resync_share_percent),
            migrations: Some(settings.migrations),
            migrations_paused: Some(settings.migrations_paused),
            scrub_bytes_per_second: Some(settings.scrub_bytes_per_second),
            scrub_interval_seconds: Some(settings.scrub_interval_seconds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_changes_and_the_message_carries_all_of_it() {
        let changes = pb::SettingsMsg {
            migrations: Some(9),
            scrub_interval_seconds: Some(0),
            ..Default::default()
        };
        let new = Settings::default().with(&changes).unwrap();
        let expected = Settings {
            migrations: 9,
            scrub_interval_seconds: 0,
            ..Settings::default()
        };
        assert_eq!(new, expected);
        assert_eq!(Settings::default().with(&new.into()).unwrap(), new);
    }

    #[test]
    fn values_out_of_range_are_named_and_nothing_changes() {
        let changes = pb::SettingsMsg {
            migrations: Some(0),
            resync_share_percent: Some(101),
            ..Default::default()
        };
        let error = Settings::default().with(&changes).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        let text = error.to_string();
        assert!(
            text.contains("migrations = 0") && text.contains("share_percent = 101"),
            "{text}"
        );
    }
}
