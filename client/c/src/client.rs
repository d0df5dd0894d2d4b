//! Connections and open files.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use emberfs_client::attr::AttrExt;
use emberfs_client::{Attr, ClientConfig, CreateFlags, Creds, Error, ErrorCode, File, OpenFlags};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::Semaphore;

use crate::abi::{MAX_LENGTH, Options, Stat};
use crate::error::{Failure, Result};
use crate::handles::{Table, claim_process};
use crate::memory::Region;

/// Threads that move bytes, unless told otherwise.
const THREADS: u32 = 4;
const MAX_THREADS: u32 = 256;
/// Bytes of a client's rings on their way between servers and registered memory.
const IN_TRANSIT: usize = 256 << 20;
/// The unit in which they are counted.
pub(crate) const TRANSIT_UNIT: usize = 1 << 10;

pub(crate) static CLIENTS: Table<Connection> = Table::new("client");
pub(crate) static FILES: Table<OpenFile> = Table::new("file");

/// A client with threads of its own.
pub(crate) struct Connection {
    client: emberfs_client::Client,
    runtime: Owned,
    /// In [`TRANSIT_UNIT`].
    pub(crate) transit: Semaphore,
    users: AtomicUsize,
}

/// A runtime that ends without waiting, wherever its last owner is dropped.
struct Owned(Option<Runtime>, Handle);

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A file or ring of a connection: as long as one exists, there is no disconnect.
pub(crate) struct User(pub(crate) Arc<Connection>, AtomicBool);

impl User {
    pub(crate) fn of(client: u64) -> Result<Self> {
        let connection = CLIENTS.get(client)?;
        connection.users.fetch_add(1, Ordering::AcqRel);
        let user = Self(connection, AtomicBool::new(true));
        // A disconnect that had not seen the count yet has taken the handle away by now.
        CLIENTS.get(client)?;
        Ok(user)
    }

    /// Its handle is gone; a task that ends may hold the rest of it for a moment longer.
    pub(crate) fn release(&self) {
        if self.1.swap(false, Ordering::AcqRel) {
            self.0.users.fetch_sub(1, Ordering::AcqRel);
        }
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.0.runtime.1
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.release();
    }
}

impl Connection {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.1.block_on(future)
    }
}

/// An open file of a connection.
pub(crate) struct OpenFile {
    pub(crate) file: File,
    pub(crate) user: User,
}

pub(crate) fn connect(address: &str, options: &Options) -> Result<u64> {
    let threads = match options.threads {
        0 => THREADS,
        n if n > MAX_THREADS => {
            return Err(Failure::invalid(format!(
                "{n} threads; at most {MAX_THREADS}"
            )));
        }
        n => n,
    };
    let mut config = ClientConfig {
        meta: address.to_owned(),
        ..ClientConfig::default()
    };
    if options.connect_timeout_ms > 0 {
        config.connect_timeout = Duration::from_millis(options.connect_timeout_ms);
    }
    if options.io_timeout_ms > 0 {
        config.io_timeout = Some(Duration::from_millis(options.io_timeout_ms));
    }
    if options.memory_bytes > 0 {
        config.memory_bytes = usize::try_from(options.memory_bytes)
            .map_err(|_| Failure::invalid("memory_bytes is more than this machine can address"))?;
    }
    claim_process();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads as usize)
        .thread_name("emberfs-c")
        .enable_all()
        .build()
        .map_err(|error| {
            let what = format!("the client's threads could not be started: {error}");
            Failure::new(error.raw_os_error().unwrap_or(libc::EAGAIN), what)
        })?;
    let handle = runtime.handle().clone();
    let runtime = Owned(Some(runtime), handle);
    let client = runtime
        .1
        .block_on(emberfs_client::Client::connect(config))?;
    Ok(CLIENTS.insert(Arc::new(Connection {
        client,
        runtime,
        transit: Semaphore::new(IN_TRANSIT / TRANSIT_UNIT),
        users: AtomicUsize::new(0),
    })))
}

pub(crate) fn disconnect(client: u64) -> Result<()> {
    let connection = CLIENTS.remove_if(client, |connection| {
        match connection.users.load(Ordering::Acquire) {
            0 => Ok(()),
            n => Err(Failure::new(
                libc::EBUSY,
                format!("{n} files and rings of it are left; close and destroy them first"),
            )),
        }
    })?;
    connection.block_on(connection.client.shutdown());
    Ok(())
}

/// open(2)'s flags.
pub(crate) fn parse_flags(flags: i32) -> Result<OpenFlags> {
    // O_SYNC contains O_DSYNC; O_LARGEFILE says nothing new here.
    let known = libc::O_ACCMODE
        | libc::O_CREAT
        | libc::O_EXCL
        | libc::O_TRUNC
        | libc::O_APPEND
        | libc::O_DIRECT
        | libc::O_SYNC
        | libc::O_LARGEFILE
        | libc::O_CLOEXEC;
    let access = flags & libc::O_ACCMODE;
    if flags & !known != 0 || access == libc::O_ACCMODE {
        return Err(Failure::invalid(format!(
            "open flags {flags:#o} have bits that EmberFS does not know"
        )));
    }
    let has = |bit| flags & bit != 0;
    Ok(OpenFlags {
        read: access != libc::O_WRONLY,
        execute: false,
        write: access != libc::O_RDONLY,
        truncate: has(libc::O_TRUNC),
        append: has(libc::O_APPEND),
        direct: has(libc::O_DIRECT),
        sync: has(libc::O_SYNC),
    })
}

/// The directory's path and the name in it.
pub(crate) fn split(path: &str) -> Result<(&str, &str)> {
    let path = path.trim_end_matches('/');
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    if matches!(name, "" | "." | "..") {
        return Err(Failure::new(
            libc::EISDIR,
            format!("{path}: names a directory"),
        ));
    }
    Ok((parent, name))
}

pub(crate) fn open(client: u64, path: &str, flags: i32, mode: u32) -> Result<u64> {
    let open = parse_flags(flags)?;
    let user = User::of(client)?;
    let client = &user.0.client;
    let me = Creds::current();
    let exclusive = flags & libc::O_EXCL != 0;
    let work = async {
        if flags & libc::O_CREAT != 0 {
            let found = match client.resolve(&me, path).await {
                Ok(_) => !exclusive,
                Err(error) if error.code == ErrorCode::NotFound => false,
                Err(error) => return Err(error.into()),
            };
            if !found {
                let (parent, name) = split(path)?;
                let parent = client.resolve(&me, parent).await?;
                let create = CreateFlags {
                    exclusive,
                    truncate: open.truncate,
                    read: open.read,
                    write: open.write,
                };
                let name = name.as_bytes();
                let created = client.create(&me, parent.id(), name, mode & 0o7777, create);
                let (attr, file) = created.await.map_err(|error| error.context(path))?;
                if !(open.append || open.direct || open.sync) {
                    return Ok(file);
                }
                // A create knows none of these; the first handle goes when the second is there.
                let flags = OpenFlags {
                    truncate: false,
                    ..open
                };
                let (_, again) = client.open(&me, attr.id(), flags).await?;
                file.close().await?;
                return Ok(again);
            }
        }
        let attr = client.resolve(&me, path).await?;
        if !attr.is_file() {
            let what = format!("{path}: is no regular file");
            return Err(Error::new(ErrorCode::IsDirectory, what).into());
        }
        let (_, file) = client.open(&me, attr.id(), open).await?;
        Ok::<_, Failure>(file)
    };
    let file = user.0.block_on(work)?;
    Ok(FILES.insert(Arc::new(OpenFile { file, user })))
}

pub(crate) fn close(file: u64) -> Result<()> {
    let open = FILES.remove_if(file, |_| Ok(()))?;
    let closed = open.user.0.block_on(open.file.clone().close());
    open.user.release();
    Ok(closed?)
}

pub(crate) fn stat(client: u64, path: &str) -> Result<Stat> {
    let user = User::of(client)?;
    let me = Creds::current();
    let found = user.0.client.resolve(&me, path);
    Ok(stat_of(&user.0.block_on(found)?))
}

fn stat_of(attr: &Attr) -> Stat {
    let kind = if attr.is_dir() {
        libc::S_IFDIR
    } else if attr.is_file() {
        libc::S_IFREG
    } else {
        // What resolve ends at is no link: what is left are the special files, whose kind no reader needs.
        0
    };
    let (seconds, nanos) = match attr.modified().duration_since(std::time::UNIX_EPOCH) {
        Ok(since) => (since.as_secs() as i64, since.subsec_nanos()),
        Err(before) => (-(before.duration().as_secs() as i64), 0),
    };
    Stat {
        size: size_of::<Stat>() as u32,
        mode: kind | attr.mode,
        inode: attr.inode,
        length: attr.size,
        uid: attr.uid,
        gid: attr.gid,
        mtime_sec: seconds,
        mtime_nsec: nanos,
        nlink: attr.nlink,
    }
}

/// The pieces of a blocking call: each at most [`MAX_LENGTH`].
fn pieces(region: &Region, offset: u64) -> Result<Vec<(u64, Region)>> {
    let len = region.len() as u64;
    if offset
        .checked_add(len)
        .is_none_or(|end| end > i64::MAX as u64)
    {
        return Err(Failure::invalid(format!(
            "{len} bytes at {offset} end behind the largest file"
        )));
    }
    let starts = (0..len).step_by(MAX_LENGTH as usize);
    let cut = |start| {
        Some((
            offset + start,
            region.part(start, MAX_LENGTH.min(len - start))?,
        ))
    };
    Ok(starts.filter_map(cut).collect())
}

pub(crate) fn pread(file: u64, region: &Region, offset: u64) -> Result<i64> {
    let open = FILES.get(file)?;
    let mut done = 0;
    for (offset, piece) in pieces(region, offset)? {
        let data = open.user.0.block_on(open.file.read(offset, piece.len()))?;
        let copied = piece.fill(&data);
        done += copied as i64;
        if copied < piece.len() {
            break;
        }
    }
    Ok(done)
}

pub(crate) fn pwrite(file: u64, region: &Region, offset: u64) -> Result<i64> {
    let open = FILES.get(file)?;
    for (offset, piece) in pieces(region, offset)? {
        open.user
            .0
            .block_on(open.file.write(offset, piece.copy()))?;
    }
    Ok(region.len() as i64)
}

pub(crate) fn fsync(file: u64) -> Result<()> {
    let open = FILES.get(file)?;
    open.user.0.block_on(open.file.sync())?;
    Ok(())
}
