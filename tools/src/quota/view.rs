//! A quota for people and scripts.

use emberfs_proto::pb::{self, QuotaKind};
use serde::Serialize;

use super::who;
use crate::show;

/// The shape of `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct View {
    kind: &'static str,
    pub(crate) id: u64,
    pub(crate) name: String,
    bytes_used: u64,
    bytes_limit: Option<u64>,
    inodes_used: u64,
    inodes_limit: Option<u64>,
    state: &'static str,
}

impl View {
    pub(crate) fn of(quota: &pb::QuotaInfo) -> Self {
        let subject = quota.subject.unwrap_or_default();
        let id = subject.id;
        let (kind, name) = match subject.kind() {
            QuotaKind::User => ("user", who::user(id)),
            QuotaKind::Group => ("group", who::group(id)),
            QuotaKind::Tree | QuotaKind::Unspecified => ("tree", Some(quota.label.clone())),
        };
        let limit = |limit| (limit > 0).then_some(limit);
        let full = |used, limit| limit > 0 && used >= limit;
        let state = if quota.counting {
            "counting"
        } else if full(quota.bytes_used, quota.bytes) || full(quota.inodes_used, quota.inodes) {
            "full"
        } else {
            "ok"
        };
        Self {
            kind,
            id,
            name: name.unwrap_or_else(|| id.to_string()),
            bytes_used: quota.bytes_used,
            bytes_limit: limit(quota.bytes),
            inodes_used: quota.inodes_used,
            inodes_limit: limit(quota.inodes),
            state,
        }
    }

    pub(crate) fn is_tree(&self) -> bool {
        self.kind == "tree"
    }

    fn row(&self) -> Vec<String> {
        let none = || "-".to_owned();
        let percent = |used, limit: Option<u64>| show::percent(used, limit.unwrap_or(0));
        vec![
            self.kind.to_owned(),
            self.name.clone(),
            show::bytes(self.bytes_used),
            self.bytes_limit.map_or_else(none, show::bytes),
            percent(self.bytes_used, self.bytes_limit),
            self.inodes_used.to_string(),
            self.inodes_limit
                .map_or_else(none, |limit| limit.to_string()),
            percent(self.inodes_used, self.inodes_limit),
            self.state.to_owned(),
        ]
    }
}

/// One line per quota.
pub(crate) fn table(views: &[View]) -> String {
    let header = [
        "kind", "of", "used", "limit", "%", "inodes", "limit", "%", "state",
    ];
    show::table(&header, views.iter().map(View::row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_a_line_with_what_is_used_of_each_limit() {
        let quota = pb::QuotaInfo {
            subject: Some(pb::QuotaSubject {
                kind: QuotaKind::Tree.into(),
                id: 7,
            }),
            bytes: 4 << 40,
            bytes_used: 1 << 40,
            inodes_used: 12,
            label: "/projects/llm".to_owned(),
            ..pb::QuotaInfo::default()
        };
        let shown = table(&[View::of(&quota)]);
        let words: Vec<_> = shown
            .lines()
            .last()
            .expect("a row")
            .split_whitespace()
            .collect();
        let wanted = [
            "tree",
            "/projects/llm",
            "1.0",
            "TiB",
            "4.0",
            "TiB",
            "25%",
            "12",
            "-",
            "-",
            "ok",
        ];
        assert_eq!(words, wanted);
        let state = |change: fn(&mut pb::QuotaInfo)| {
            let mut quota = quota.clone();
            change(&mut quota);
            View::of(&quota).state
        };
        assert_eq!(state(|quota| quota.inodes = 12), "full");
        assert_eq!(state(|quota| quota.bytes_used = quota.bytes), "full");
        assert_eq!(state(|quota| quota.counting = true), "counting");
    }
}
