//! Random operations against a tree in memory.

use std::collections::BTreeMap;

use super::fixture::*;
use super::trash;
use emberfs_proto::ErrorCode;
use emberfs_proto::ErrorCode::*;
use emberfs_proto::pb::{self, FileKind};
use proptest::prelude::*;

/// A place is a directory (picked among those that ever existed) and one of a few names.
type Place = (usize, u8);

#[derive(Clone, Debug)]
enum Op {
    Create(Place),
    Mkdir(Place),
    Unlink(Place),
    Rmdir(Place),
    Link(Place, Place),
    Rename(Place, Place, u8),
    Truncate(Place, u16),
    Collect,
}

fn op() -> impl Strategy<Value = Op> {
    let place = || (0usize..6, 0u8..4);
    prop_oneof![
        4 => place().prop_map(Op::Create),
        4 => place().prop_map(Op::Mkdir),
        2 => place().prop_map(Op::Unlink),
        2 => place().prop_map(Op::Rmdir),
        2 => (place(), place()).prop_map(|(a, b)| Op::Link(a, b)),
        5 => (place(), place(), 0u8..6).prop_map(|(a, b, f)| Op::Rename(a, b, f)),
        1 => (place(), any::<u16>()).prop_map(|(a, s)| Op::Truncate(a, s)),
        1 => Just(Op::Collect),
    ]
}

/// What there should be.
#[derive(Default)]
struct Model {
    /// Every directory ever made, dead or alive, in order.
    dirs: Vec<u64>,
    entries: BTreeMap<u64, BTreeMap<String, u64>>,
    parents: BTreeMap<u64, u64>,
    files: BTreeMap<u64, (u32, u64)>,
}

impl Model {
    fn is_dir(&self, inode: u64) -> bool {
        self.entries.contains_key(&inode)
    }

    fn at(&self, (dir, name): Place) -> (u64, String) {
        (self.dirs[dir % self.dirs.len()], format!("n{name}"))
    }

    /// The directory, and what the name is.
    fn find(&self, dir: u64, name: &str) -> Result<u64, ErrorCode> {
        self.entries
            .get(&dir)
            .ok_or(NotFound)?
            .get(name)
            .copied()
            .ok_or(NotFound)
    }

    fn drop_file(&mut self, inode: u64) {
        if let Some(file) = self.files.get_mut(&inode) {
            file.0 -= 1;
            if file.0 == 0 {
                self.files.remove(&inode);
            }
        }
    }

    fn is_below(&self, mut inode: u64, top: u64) -> bool {
        loop {
            if inode == top {
                return true;
            }
            if inode == ROOT {
                return false;
            }
            inode = self.parents[&inode];
        }
    }

    fn rename(
        &mut self,
        from: &(u64, String),
        to: &(u64, String),
        no_replace: bool,
        exchange: bool,
    ) -> Result<(), ErrorCode> {
        if !self.is_dir(from.0) || !self.is_dir(to.0) {
            return Err(NotFound);
        }
        let moved = self.find(from.0, &from.1)?;
        let other = self.find(to.0, &to.1).ok();
        if no_replace && other.is_some() {
            return Err(Exists);
        }
        if exchange && other.is_none() {
            return Err(NotFound);
        }
        if other == Some(moved) {
            return Ok(());
        }
        if from.0 != to.0 {
            if self.is_dir(moved) && self.is_below(to.0, moved) {
                return Err(InvalidArgument);
            }
            if exchange && other.is_some_and(|o| self.is_dir(o) && self.is_below(from.0, o)) {
                return Err(InvalidArgument);
            }
        }
        if exchange {
            let other = other.ok_or(NotFound)?;
            self.put(from, other);
        } else {
            if let Some(other) = other {
                match (self.is_dir(moved), self.is_dir(other)) {
                    (true, false) => return Err(NotDirectory),
                    (false, true) => return Err(IsDirectory),
                    (false, false) => self.drop_file(other),
                    (true, true) if !self.entries[&other].is_empty() => return Err(NotEmpty),
                    (true, true) => {
                        self.entries.remove(&other);
                    }
                }
            }
            self.entries.get_mut(&from.0).unwrap().remove(&from.1);
        }
        self.put(to, moved);
        Ok(())
    }

    fn put(&mut self, at: &(u64, String), inode: u64) {
        self.entries
            .get_mut(&at.0)
            .unwrap()
            .insert(at.1.clone(), inode);
        if self.is_dir(inode) {
            self.parents.insert(inode, at.0);
        }
    }
}

async fn apply(f: &Fixture, model: &mut Model, op: Op) {
    match op {
        Op::Create(place) => {
            let (dir, name) = model.at(place);
            let expected = match model.find(dir, &name) {
                Ok(_) => Err(Exists),
                Err(_) if !model.is_dir(dir) => Err(NotFound),
                Err(_) => Ok(()),
            };
            let got = f.create(f.root(), dir, &name, 0o644).await;
            assert_eq!(got.as_ref().map(|_| ()).map_err(|e| e.code), expected);
            if let Ok(opened) = got {
                let inode = opened.attr.unwrap().inode;
                f.close(inode, opened.session).await;
                model.put(&(dir, name), inode);
                model.files.insert(inode, (1, 0));
            }
        }
        Op::Mkdir(place) => {
            let (dir, name) = model.at(place);
            let expected = match model.find(dir, &name) {
                Ok(_) => Err(Exists),
                Err(_) if !model.is_dir(dir) => Err(NotFound),
                Err(_) => Ok(()),
            };
            let got = f.try_mkdir(f.root(), dir, &name, 0o755).await;
            assert_eq!(got.as_ref().map(|_| ()).map_err(|e| e.code), expected);
            if let Ok(attr) = got {
                model.dirs.push(attr.inode);
                model.entries.insert(attr.inode, BTreeMap::new());
                model.put(&(dir, name), attr.inode);
            }
        }
        Op::Unlink(place) => {
            let (dir, name) = model.at(place);
            let expected = match model.find(dir, &name) {
                Ok(inode) if model.is_dir(inode) => Err(IsDirectory),
                found => found.map(|_| ()),
            };
            let got = f.unlink(dir, &name).await;
            assert_eq!(got.map(|_| ()).map_err(|e| e.code), expected);
            if expected.is_ok() {
                let inode = model.entries.get_mut(&dir).unwrap().remove(&name).unwrap();
                model.drop_file(inode);
            }
        }
        Op::Rmdir(place) => {
            let (dir, name) = model.at(place);
            let expected = match model.find(dir, &name) {
                Ok(inode) if !model.is_dir(inode) => Err(NotDirectory),
                Ok(inode) if !model.entries[&inode].is_empty() => Err(NotEmpty),
                found => found.map(|_| ()),
            };
            let got = f.rmdir(dir, &name).await;
            assert_eq!(got.map(|_| ()).map_err(|e| e.code), expected);
            if expected.is_ok() {
                let inode = model.entries.get_mut(&dir).unwrap().remove(&name).unwrap();
                model.entries.remove(&inode);
            }
        }
        Op::Link(from, to) => {
            let (dir, name) = model.at(from);
            let Ok(inode) = model.find(dir, &name) else {
                return;
            };
            let (to, new) = model.at(to);
            let expected = match model.find(to, &new) {
                Ok(_) => Err(Exists),
                Err(_) if !model.is_dir(to) => Err(NotFound),
                Err(_) if model.is_dir(inode) => Err(NotPermitted),
                Err(_) => Ok(()),
            };
            let request = pb::LinkRequest {
                caller: f.root(),
                inode,
                parent: to,
                name: bytes(&new),
            };
            let got = f.ns.link(request).await;
            assert_eq!(got.map(|_| ()).map_err(|e| e.code), expected);
            if expected.is_ok() {
                model.put(&(to, new), inode);
                model.files.get_mut(&inode).unwrap().0 += 1;
            }
        }
        Op::Rename(from, to, flags) => {
            let (from, to) = (model.at(from), model.at(to));
            let (no_replace, exchange) = (flags == 4, flags == 5);
            let expected = model.rename(&from, &to, no_replace, exchange);
            let got = f
                .rename_with(from.0, &from.1, to.0, &to.1, no_replace, exchange)
                .await;
            assert_eq!(got.map(|_| ()).map_err(|e| e.code), expected);
        }
        Op::Truncate(place, size) => {
            let (dir, name) = model.at(place);
            let Ok(inode) = model.find(dir, &name) else {
                return;
            };
            let got = f.truncate(inode, size.into()).await;
            if let Some(file) = model.files.get_mut(&inode) {
                file.1 = size.into();
                got.unwrap();
            } else {
                assert_eq!(code(got), IsDirectory);
            }
        }
        Op::Collect => {
            f.collect().await;
        }
    }
}

async fn compare(f: &Fixture, model: &Model) {
    for (&dir, entries) in &model.entries {
        let names: Vec<_> = entries.keys().cloned().collect();
        assert_eq!(f.names(dir).await, names);
        let subdirs = entries
            .values()
            .filter(|&&inode| model.is_dir(inode))
            .count();
        assert_eq!(f.attr(dir).await.unwrap().nlink as usize, 2 + subdirs);
        for (name, &inode) in entries {
            let attr = f.lookup(dir, name).await.unwrap();
            assert_eq!(attr.inode, inode);
            match model.files.get(&inode) {
                Some(&(nlink, size)) => assert_eq!((attr.nlink, attr.size), (nlink, size)),
                None => assert_eq!(attr.kind(), FileKind::Directory),
            }
        }
    }
    f.collect().await;
    let summary = f.summary().await;
    let expected = model.entries.len() + model.files.len();
    assert_eq!(
        (summary.inodes as usize, summary.garbage, summary.sessions),
        (expected, 0, 0)
    );
}

/// Gives so many names in the trash back, elsewhere, and removes them for good.
async fn restore_and_remove(f: &Fixture, most: usize) {
    let mut names = Vec::new();
    for entry in trash::all(f).await.into_iter().take(most) {
        let name = format!("restored-{}", names.len());
        let request = pb::RestoreTrashRequest {
            caller: f.root(),
            spot: entry.spot,
            to_parent: ROOT,
            to_name: bytes(&name),
        };
        match f.ns.restore_trash(request).await {
            Ok(reply) => names.push((name, reply.attr.unwrap().kind())),
            // It came back with its directory.
            Err(error) => assert_eq!(error.code, NotFound),
        }
    }
    trash::keep(f, ROOT, Some(0)).await;
    for (name, kind) in names {
        if kind == FileKind::Directory {
            f.ns.remove_tree(f.named(ROOT, &name)).await.unwrap();
        } else {
            f.unlink(ROOT, &name).await.unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_namespace_behaves_like_a_tree(ops in proptest::collection::vec(op(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let f = Fixture::new();
            let mut model = Model::default();
            model.dirs.push(ROOT);
            model.entries.insert(ROOT, BTreeMap::new());
            for op in ops {
                apply(&f, &mut model, op).await;
            }
            compare(&f, &model).await;
            // Nothing was only in memory.
            compare(&f.restart(), &model).await;
        });
    }

    /// As without trash, once what is in there has expired or has come back and was removed again.
    #[test]
    fn trash_neither_loses_nor_leaves_anything(
        ops in proptest::collection::vec(op(), 1..60), restored in 0usize..20,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let f = Fixture::new();
            let mut model = Model::default();
            model.dirs.push(ROOT);
            model.entries.insert(ROOT, BTreeMap::new());
            trash::keep(&f, ROOT, Some(trash::DAY)).await;
            for op in ops {
                apply(&f, &mut model, op).await;
            }
            restore_and_remove(&f, restored).await;
            trash::expire_all(&f).await;
            assert!(trash::all(&f).await.is_empty());
            compare(&f, &model).await;
            compare(&f.restart(), &model).await;
        });
    }
}
