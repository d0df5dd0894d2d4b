//! What a transaction has written so far, in a normal form.
//!
//! The form is "first clear these ranges, then write these keys": a later `delete_range` drops the
//! key writes it covers, so order is no longer needed. The same structure overlays a
//! transaction's own reads, merges a group of transactions into one batch, and turns blind
//! atomics into plain values once somebody knows what they apply to.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included};

use bytes::Bytes;

use super::{KvError, KvResult};

/// A change that needs the old value, and is applied by whoever knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Atomic {
    AddI64(i64),
    MaxU64(u64),
}

/// A value as a number; see [`super::Transaction`].
fn number(value: Option<&[u8]>) -> i64 {
    let value = value.unwrap_or_default();
    let mut bytes = [0; 8];
    let length = value.len().min(8);
    bytes[..length].copy_from_slice(&value[..length]);
    i64::from_le_bytes(bytes)
}

impl Atomic {
    /// The value after the change.
    pub(super) fn apply(self, old: Option<&[u8]>) -> Bytes {
        let number = number(old);
        match self {
            Self::AddI64(delta) => {
                Bytes::copy_from_slice(&number.wrapping_add(delta).to_le_bytes())
            }
            Self::MaxU64(value) => {
                Bytes::copy_from_slice(&(number as u64).max(value).to_le_bytes())
            }
        }
    }

    pub(super) fn apply_all(changes: &[Self], old: Option<Bytes>) -> Option<Bytes> {
        changes
            .iter()
            .fold(old, |old, change| Some(change.apply(old.as_deref())))
    }
}

/// The last word on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Write {
    Put(Bytes),
    Delete,
    /// In this order, on top of whatever the store holds.
    Atomic(Vec<Atomic>),
}

/// What a set of mutations says about a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Overlay<'a> {
    /// It determines the value.
    Known(Option<Bytes>),
    /// It changes the value that the store holds.
    Changes(&'a [Atomic]),
    /// It says nothing.
    Untouched,
}

/// The writes of a transaction, or of a group of them.
#[derive(Debug, Default)]
pub(super) struct Mutations {
    /// Begin to end of the ranges to clear; disjoint and not adjacent.
    cleared: BTreeMap<Bytes, Bytes>,
    /// Written after the ranges are cleared.
    keys: BTreeMap<Bytes, Write>,
}

impl Mutations {
    pub(super) fn is_empty(&self) -> bool {
        self.cleared.is_empty() && self.keys.is_empty()
    }

    pub(super) fn put(&mut self, key: Bytes, value: Bytes) {
        self.keys.insert(key, Write::Put(value));
    }

    pub(super) fn delete(&mut self, key: Bytes) {
        self.keys.insert(key, Write::Delete);
    }

    pub(super) fn atomic(&mut self, key: Bytes, change: Atomic) {
        if !self.keys.contains_key(&key) && self.is_cleared(&key) {
            self.keys.insert(key, Write::Put(change.apply(None)));
            return;
        }
        let write = self
            .keys
            .entry(key)
            .or_insert_with(|| Write::Atomic(Vec::new()));
        match write {
            Write::Put(value) => *value = change.apply(Some(value)),
            Write::Delete => *write = Write::Put(change.apply(None)),
            Write::Atomic(changes) => match (changes.last_mut(), change) {
                (Some(Atomic::AddI64(sum)), Atomic::AddI64(delta)) => {
                    *sum = sum.wrapping_add(delta);
                }
                (Some(Atomic::MaxU64(max)), Atomic::MaxU64(value)) => *max = value.max(*max),
                _ => changes.push(change),
            },
        }
    }

    pub(super) fn delete_range(&mut self, mut begin: Bytes, mut end: Bytes) {
        if begin >= end {
            return;
        }
        let covered: Vec<Bytes> = self
            .range(&begin, &end)
            .map(|(key, _)| key.clone())
            .collect();
        for key in covered {
            self.keys.remove(&key);
        }
        // Absorb every range that overlaps or touches the new one.
        while let Some((other, other_end)) = self
            .cleared
            .range(..=end.clone())
            .next_back()
            .filter(|(_, other)| **other >= begin)
        {
            let (other, other_end) = (other.clone(), other_end.clone());
            self.cleared.remove(&other);
            begin = begin.min(other);
            end = end.max(other_end);
        }
        self.cleared.insert(begin, end);
    }

    /// Turns every atomic into a put, given what the store holds.
    pub(super) fn resolve(
        &mut self,
        mut stored: impl FnMut(&[u8]) -> KvResult<Option<Bytes>>,
    ) -> KvResult<()> {
        for (key, write) in &mut self.keys {
            if let Write::Atomic(changes) = write {
                *write = match Atomic::apply_all(changes, stored(key)?) {
                    Some(value) => Write::Put(value),
                    None => Write::Delete,
                };
            }
        }
        Ok(())
    }

    pub(super) fn is_cleared(&self, key: &[u8]) -> bool {
        let before = self
            .cleared
            .range::<[u8], _>((Included(&[][..]), Included(key)))
            .next_back();
        before.is_some_and(|(_, end)| end > key)
    }

    pub(super) fn lookup(&self, key: &[u8]) -> Overlay<'_> {
        match self.keys.get(key) {
            Some(Write::Put(value)) => Overlay::Known(Some(value.clone())),
            Some(Write::Delete) => Overlay::Known(None),
            Some(Write::Atomic(changes)) => Overlay::Changes(changes),
            None if self.is_cleared(key) => Overlay::Known(None),
            None => Overlay::Untouched,
        }
    }

    /// The value of a key with these mutations on top of what is stored.
    pub(super) fn value(
        &self,
        key: &[u8],
        stored: impl FnOnce(&[u8]) -> KvResult<Option<Bytes>>,
    ) -> KvResult<Option<Bytes>> {
        Ok(match self.lookup(key) {
            Overlay::Known(value) => value,
            Overlay::Changes(changes) => Atomic::apply_all(changes, stored(key)?),
            Overlay::Untouched => stored(key)?,
        })
    }

    /// The written keys of a range, in order. `begin` must not be past `end`.
    pub(super) fn range(
        &self,
        begin: &[u8],
        end: &[u8],
    ) -> impl DoubleEndedIterator<Item = (&Bytes, &Write)> {
        self.keys.range::<[u8], _>((Included(begin), Excluded(end)))
    }

    pub(super) fn cleared(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.cleared.iter()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = (&Bytes, &Write)> {
        self.keys.iter()
    }
}

/// What numbers may be at most after a transaction.
#[derive(Debug, Default)]
pub(super) struct Bounds(BTreeMap<Bytes, i64>);

impl Bounds {
    /// The lowest limit counts.
    pub(super) fn at_most(&mut self, key: Bytes, max: i64) {
        let bound = self.0.entry(key).or_insert(max);
        *bound = max.min(*bound);
    }

    /// [`KvError::AboveLimit`] if a number is greater than it may be, once `mutations` are applied to what `stored`
    /// tells.
    pub(super) fn check(
        &self,
        mutations: &Mutations,
        mut stored: impl FnMut(&[u8]) -> KvResult<Option<Bytes>>,
    ) -> KvResult<()> {
        for (key, max) in &self.0 {
            let value = mutations.value(key, &mut stored)?;
            if number(value.as_deref()) > *max {
                return Err(KvError::AboveLimit);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
