//! Paths: the walk from the root, symbolic links included.

use std::collections::VecDeque;

use bytes::Bytes;
use emberfs_proto::{Error, ErrorCode, Result};

use crate::attr::AttrExt;
use crate::{Attr, Client, Creds};

/// Most symbolic links of one walk, as in Linux.
const MAX_LINKS: u32 = 40;

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = Bytes> {
    let parts = path
        .split(|&b| b == b'/')
        .filter(|part| !part.is_empty() && *part != b".");
    parts.map(Bytes::copy_from_slice)
}

impl Client {
    /// Walks a path from the root of the file system and follows symbolic links, the last one too, up
    /// to 40. An absolute link starts at the root again.
    pub async fn resolve(&self, creds: &Creds, path: &str) -> Result<Attr> {
        let mut links = 0;
        let mut todo: VecDeque<Bytes> = components(path.as_bytes()).collect();
        // The directories that were walked through, so that ".." is exact.
        let mut above: Vec<Attr> = Vec::new();
        let mut here = self.getattr(self.root()).await?;
        while let Some(name) = todo.pop_front() {
            if name.as_ref() == b".." {
                here = above.pop().unwrap_or(here);
                continue;
            }
            if !here.is_dir() {
                let what = format!(
                    "{path}: a component before {:?} is no directory",
                    name.as_ref().escape_ascii().to_string()
                );
                return Err(Error::new(ErrorCode::NotDirectory, what));
            }
            let next = self.lookup(creds, here.id(), &name).await;
            let next = next.map_err(|error| error.context(path))?;
            if !next.is_symlink() {
                above.push(std::mem::replace(&mut here, next));
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                let what = format!("{path}: more than {MAX_LINKS} symbolic links");
                return Err(Error::new(ErrorCode::Loop, what));
            }
            let target = self.readlink(creds, next.id()).await?;
            if target.starts_with(b"/") {
                here = above.into_iter().next().unwrap_or(here);
                above = Vec::new();
            }
            for part in components(&target).rev() {
                todo.push_front(part);
            }
        }
        Ok(here)
    }
}
