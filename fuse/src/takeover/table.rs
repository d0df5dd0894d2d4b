//! Records of a fixed size in an anonymous file, which a successor of this process reads.
//!
//! A record is written by one call and lies in one page: whoever is killed has either written it or not.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use parking_lot::Mutex;
use rustix::fs::MemfdFlags;

/// Bytes of a record, two for its length included. Part of what two versions of this program share.
const RECORD: usize = 512;

/// Where a record is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place(u32);

/// A record that was found, and where.
pub(crate) type Record = (Place, Vec<u8>);

/// See the module.
pub(crate) struct Table {
    file: File,
    limit: u32,
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    places: Vec<u32>,
    /// No record was ever here or behind.
    end: u32,
}

impl Table {
    /// The file of a new one.
    pub(crate) fn create() -> io::Result<OwnedFd> {
        Ok(rustix::fs::memfd_create(
            "emberfs-mount",
            MemfdFlags::CLOEXEC,
        )?)
    }

    /// Takes a table over, with the records that it holds. It takes at most `limit` records.
    pub(crate) fn open(fd: OwnedFd, limit: u32) -> io::Result<(Self, Vec<Record>)> {
        let file = File::from(fd);
        let end = (file.metadata()?.len() / RECORD as u64) as u32;
        let (mut records, mut places) = (Vec::new(), Vec::new());
        let mut bytes = [0; RECORD];
        for place in (0..end).rev() {
            file.read_exact_at(&mut bytes, u64::from(place) * RECORD as u64)?;
            let len = usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
            match bytes.get(2..2 + len) {
                Some(record) if len > 0 => records.push((Place(place), record.to_vec())),
                _ => places.push(place),
            }
        }
        let free = Mutex::new(Free { places, end });
        Ok((Self { file, limit, free }, records))
    }

    /// Adds a record; `None` if it is too long, or the table full.
    pub(crate) fn add(&self, record: &[u8]) -> Option<Place> {
        let place = {
            let mut free = self.free.lock();
            match free.places.pop() {
                Some(place) => place,
                None if free.end < self.limit => {
                    free.end += 1;
                    free.end - 1
                }
                None => return None,
            }
        };
        let place = Place(place);
        if self.set(&place, record) {
            Some(place)
        } else {
            self.free.lock().places.push(place.0);
            None
        }
    }

    /// Replaces a record; false if that is not possible, and the old one stays.
    pub(crate) fn set(&self, place: &Place, record: &[u8]) -> bool {
        if record.len() > RECORD - 2 {
            return false;
        }
        let mut bytes = [0; RECORD];
        bytes[..2].copy_from_slice(&(record.len() as u16).to_le_bytes());
        bytes[2..2 + record.len()].copy_from_slice(record);
        self.write(place, &bytes)
    }

    /// Removes a record.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the place may be another record's afterwards"
    )]
    pub(crate) fn remove(&self, place: Place) {
        if self.write(&place, &[0; 2]) {
            self.free.lock().places.push(place.0);
        }
    }

    fn write(&self, place: &Place, bytes: &[u8]) -> bool {
        let at = u64::from(place.0) * RECORD as u64;
        let written = self.file.write_all_at(bytes, at);
        if let Err(error) = &written {
            tracing::warn!(%error, "what a successor of this process needs to know cannot be noted");
        }
        written.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_again_and_places_used_again() {
        let fd = Table::create().unwrap();
        let (table, found) = Table::open(fd.try_clone().unwrap(), 3).unwrap();
        assert!(found.is_empty());
        let first = table.add(b"first").unwrap();
        let second = table.add(b"second").unwrap();
        table.add(&[7; 510]).unwrap();
        assert_eq!(table.add(b"fourth"), None, "full");
        assert!(table.set(&second, b"changed"));
        assert!(!table.set(&second, &[1; 511]), "too long");
        table.remove(first);
        let (again, mut found) = Table::open(fd, 3).unwrap();
        found.sort_by_key(|(place, _)| place.0);
        let records: Vec<_> = found.into_iter().map(|(_, record)| record).collect();
        assert_eq!(records, [b"changed".to_vec(), vec![7; 510]]);
        assert_eq!(again.add(b"new"), Some(Place(0)));
        assert_eq!(again.add(b"more"), None);
    }
}
