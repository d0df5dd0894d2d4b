//! Whole small files in few round trips: one to the metadata server for many names, then one to each
//! storage node for many files.
//!
//! The files are not opened, so nothing keeps the chunks of one that is deleted meanwhile. It is noticed
//! all the same. Inode numbers are never used twice, so a chunk either holds the file's bytes or is
//! missing; and a missing one is taken for a hole only if the file is still there **after** the read,
//! with the same length and truncate epoch: chunks go only after the last name. A file that changed is
//! opened and read again like any other.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode, Result, pb};
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::attr::AttrExt;
use crate::inode_state::InodeState;
use crate::meta_rpc::rpc;
use crate::plan::transient;
use crate::read_many::{Got, LARGE, MAX_RANGE, Range, fetch, read_part};
use crate::{Attr, Client, Creds, OpenFlags};

/// Names of one request to the metadata server.
const NAMES: usize = 1024;
/// Requests of one call to it that are answered ahead of the reads.
const LOOKUPS_IN_FLIGHT: usize = 2;
/// Files of one call that are finished at the same time.
const FILES_IN_FLIGHT: usize = 32;
/// Chunks of one file that are read on their own at the same time.
const PARTS_IN_FLIGHT: usize = 8;
/// Bytes of large files that one call holds at the same time; a single one may be larger.
const LARGE_BYTES: usize = 64 << 20;

/// A whole file.
type Whole = (Attr, Bytes);

/// A file on its way: which of the call's names, and what the lookup answered.
struct Wanted {
    index: usize,
    name: Bytes,
    attr: Attr,
}

#[derive(Clone)]
struct Fetcher {
    client: Client,
    creds: Creds,
    parent: InodeId,
    /// Room for large files.
    room: Arc<Semaphore>,
}

impl Client {
    /// Reads whole files of a directory, each as lookup, open, read and close would do, but with one
    /// request for many names and few requests per storage node. Answers `(index, (attributes, bytes))`
    /// in the order in which files are complete, each with an error of its own.
    ///
    /// Symbolic links are not followed ([`ErrorCode::Loop`]); a file larger than 1 GiB is
    /// [`ErrorCode::InvalidArgument`]; one that is deleted meanwhile is [`ErrorCode::NotFound`]. Small files
    /// share memory with others of the same request: who keeps one for long should copy it.
    ///
    /// Dropping the stream cancels what is left.
    pub fn fetch_files<N: AsRef<[u8]>>(
        &self,
        creds: &Creds,
        parent: InodeId,
        names: &[N],
    ) -> BoxStream<'static, (usize, Result<Whole>)> {
        let fetcher = Fetcher {
            client: self.clone(),
            creds: creds.clone(),
            parent,
            room: Arc::new(Semaphore::new(LARGE_BYTES)),
        };
        let names = names
            .iter()
            .map(|name| Bytes::copy_from_slice(name.as_ref()));
        let names: Vec<(usize, Bytes)> = names.enumerate().collect();
        let pages: Vec<_> = names.chunks(NAMES).map(<[_]>::to_vec).collect();
        let lookups = stream::iter(pages).map({
            let fetcher = fetcher.clone();
            move |page| {
                let fetcher = fetcher.clone();
                async move { (fetcher.lookup(&page).await, page) }
            }
        });
        lookups
            .buffered(LOOKUPS_IN_FLIGHT)
            .flat_map(move |(found, page)| fetcher.clone().read(found, page))
            .boxed()
    }
}

impl Fetcher {
    /// What each name of a page is.
    async fn lookup(&self, page: &[(usize, Bytes)]) -> Vec<Result<Attr>> {
        let request = pb::LookupManyRequest {
            caller: None,
            parent: self.parent.0,
            names: page.iter().map(|(_, name)| name.clone()).collect(),
        };
        let meta = &self.client.core.meta;
        let reply = rpc!(meta, &self.creds, Reads, lookup_many, request);
        let results = match reply {
            Ok(reply) if reply.results.len() == page.len() => reply.results,
            Ok(_) => {
                let what = "the metadata server did not answer each of many names";
                return vec![Err(Error::new(ErrorCode::Protocol, what)); page.len()];
            }
            Err(error) => return vec![Err(error); page.len()],
        };
        let results = results.into_iter().map(|result| {
            result
                .attr
                .ok_or_else(|| Error::new(ErrorCode::from_number(result.status), result.message))
        });
        results.collect()
    }

    /// Reads the files of one page.
    fn read(
        self,
        found: Vec<Result<Attr>>,
        page: Vec<(usize, Bytes)>,
    ) -> impl stream::Stream<Item = (usize, Result<Whole>)> + Send + 'static {
        let (mut done, mut alone, mut ranges) = (Vec::new(), Vec::new(), Vec::new());
        for (found, (index, name)) in found.into_iter().zip(page) {
            match found {
                // A file in the middle of a change, and a server that does not know the request.
                Err(error) if transient(&error) || error.code == ErrorCode::Unsupported => {
                    alone.push((index, name));
                }
                // One that this client has open, perhaps with writes that the server does not know.
                Ok(attr) if self.client.core.known(attr.id()).is_some() => {
                    alone.push((index, name));
                }
                Ok(attr) if attr.is_file() && attr.size == 0 => {
                    done.push((index, Ok((attr, Bytes::new()))));
                }
                found => match found.and_then(|attr| Ok((range_of(&attr)?, attr))) {
                    Ok((range, attr)) => ranges.push((Wanted { index, name, attr }, range)),
                    Err(error) => done.push((index, Err(error))),
                },
            }
        }
        let opened = {
            let this = self.clone();
            stream::iter(alone).map(move |(index, name)| {
                let this = this.clone();
                async move { (index, this.open_and_read(&name).await, None) }.boxed()
            })
        };
        let fetched = fetch(self.client.core.clone(), ranges).map(move |(wanted, got)| {
            let this = self.clone();
            async move {
                let room = this.room_for(&wanted.attr).await;
                let whole = match got {
                    Ok(got) => this.finish(&wanted, got).await,
                    Err(error) => Err(error),
                };
                (wanted.index, whole, room)
            }
            .boxed()
        });
        let whole = stream::select(opened, fetched)
            .buffer_unordered(FILES_IN_FLIGHT)
            // The room of a large file is free again when the caller has it.
            .map(|(index, whole, _room)| (index, whole));
        stream::iter(done).chain(whole)
    }

    async fn room_for(&self, attr: &Attr) -> Option<OwnedSemaphorePermit> {
        let bytes = attr.size as usize;
        if bytes < LARGE {
            return None;
        }
        let bytes = bytes.min(LARGE_BYTES) as u32;
        self.room.clone().acquire_many_owned(bytes).await.ok()
    }

    async fn finish(&self, wanted: &Wanted, got: Got) -> Result<Whole> {
        let (bytes, short) = self.assemble(got).await?;
        if !short || self.still_there(&wanted.attr).await? {
            return Ok((wanted.attr, bytes));
        }
        self.open_and_read(&wanted.name).await
    }

    /// The bytes, and whether chunks held less than the length says.
    async fn assemble(&self, got: Got) -> Result<(Bytes, bool)> {
        let Got { range, mut parts } = got;
        if let [part] = parts.as_mut_slice()
            && let Some(data) = part.data.take_if(|data| data.len() == range.len)
        {
            return Ok((data, false));
        }
        let (core, state) = (&self.client.core, &range.state);
        let mut parts = stream::iter(parts)
            .map(|part| async move {
                let data = match part.data {
                    Some(data) => data,
                    None => read_part(core, state, &part.span).await?,
                };
                Ok::<_, Error>((part.span, data))
            })
            .buffered(PARTS_IN_FLIGHT);
        let (mut whole, mut short) = (BytesMut::with_capacity(range.len), false);
        while let Some((span, data)) = parts.try_next().await? {
            short |= data.len() < span.len as usize;
            whole.extend_from_slice(&data);
            whole.resize(span.at + span.len as usize, 0);
        }
        Ok((whole.freeze(), short))
    }

    /// Were the missing chunks holes? `false`: the file was changed, and is to be read again.
    async fn still_there(&self, seen: &Attr) -> Result<bool> {
        match self.client.core.fetch_attr(seen.id()).await {
            Ok(now) if now.nlink == 0 => Err(deleted(seen.id())),
            Ok(now) => Ok((now.size, now.truncate_epoch) == (seen.size, seen.truncate_epoch)),
            Err(error) => Err(or_deleted(error, seen.id())),
        }
    }

    async fn open_and_read(&self, name: &[u8]) -> Result<Whole> {
        let client = &self.client;
        let attr = client.lookup(&self.creds, self.parent, name).await?;
        regular(&attr)?;
        let flags = OpenFlags {
            read: true,
            direct: true,
            ..OpenFlags::default()
        };
        let opened = client.open(&self.creds, attr.id(), flags).await;
        let (attr, file) = opened.map_err(|error| or_deleted(error, attr.id()))?;
        let whole = match within(&attr) {
            Ok(len) => file.read(0, len).await,
            Err(error) => Err(error),
        };
        if let Err(error) = file.close().await {
            tracing::debug!(inode = attr.inode, %error, "closing a file after reading it failed");
        }
        Ok((attr, whole?))
    }
}

/// The whole of a file that this client does not have open.
fn range_of(attr: &Attr) -> Result<Range> {
    regular(attr)?;
    Ok(Range {
        state: Arc::new(InodeState::new(attr, false)?),
        offset: 0,
        len: within(attr)?,
    })
}

fn regular(attr: &Attr) -> Result<()> {
    let code = match attr.kind() {
        pb::FileKind::File => return Ok(()),
        pb::FileKind::Directory => ErrorCode::IsDirectory,
        pb::FileKind::Symlink => ErrorCode::Loop,
        _ => ErrorCode::InvalidArgument,
    };
    let what = format!("inode {} is no regular file: it cannot be read", attr.inode);
    Err(Error::new(code, what))
}

fn within(attr: &Attr) -> Result<usize> {
    let len = usize::try_from(attr.size).unwrap_or(usize::MAX);
    if len <= MAX_RANGE {
        return Ok(len);
    }
    let what = format!(
        "inode {} has {} bytes; a file of more than {MAX_RANGE} is to be opened and read in parts",
        attr.inode, attr.size
    );
    Err(Error::new(ErrorCode::InvalidArgument, what))
}

fn or_deleted(error: Error, inode: InodeId) -> Error {
    match error.code {
        ErrorCode::Stale | ErrorCode::NotFound => deleted(inode),
        _ => error,
    }
}

fn deleted(inode: InodeId) -> Error {
    let what = format!("inode {inode} was deleted before it was read");
    Error::new(ErrorCode::NotFound, what)
}
