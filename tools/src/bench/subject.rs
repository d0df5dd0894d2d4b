//! What is measured: a directory, or a cluster through the native client.

use std::fs;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use emberfs_client::blocking::{Client, File};
use emberfs_client::{ClientConfig, CreateFlags, Creds, OpenFlags, RenameFlags};
use emberfs_proto::buf::AlignedBuf;
use emberfs_proto::ids::InodeId;

use crate::failure::{Context, Failure, Result, fail};

/// A place with files, addressed by plain names.
pub(super) trait Subject: Send + Sync {
    /// For the report.
    fn describe(&self) -> String;
    /// Makes and opens a new file.
    fn create(&self, name: &str) -> Result<Box<dyn Handle>>;
    /// Opens an existing file for reading.
    fn open(&self, name: &str) -> Result<Box<dyn Handle>>;
    /// Length of a file.
    fn stat(&self, name: &str) -> Result<u64>;
    /// Gives a file another name, which must be free.
    fn rename(&self, from: &str, to: &str) -> Result<()>;
    /// Removes a file.
    fn unlink(&self, name: &str) -> Result<()>;
    /// Reads whole files, in any order, and hands each to `each`: one after the other, unless there is a better way.
    fn fetch(
        &self,
        names: &[String],
        each: &mut dyn FnMut(&str, &[u8]) -> Result<()>,
    ) -> Result<()> {
        for name in names {
            let mut file = self.open(name)?;
            let mut whole = AlignedBuf::zeroed(self.stat(name)? as usize);
            let len = file.read_at(0, &mut whole)?;
            file.close()?;
            each(name, &whole[..len])?;
        }
        Ok(())
    }
    /// Makes the next read of these files come from disks.
    fn drop_caches(&self, names: &[String]) -> Result<()>;
    /// Removes what was made.
    fn finish(&self);
}

/// An open file.
pub(super) trait Handle: Send {
    /// Writes all of `data`.
    fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<()>;
    /// Reads until `buf` is full or the file ends.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize>;
    /// As [`Self::read_at`], and hands what was read to `each` where it lies: in `buf`, unless the subject has memory
    /// of its own that needs no copy.
    fn read_with(
        &mut self,
        offset: u64,
        buf: &mut [u8],
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let len = self.read_at(offset, buf)?;
        each(&buf[..len])
    }
    /// fsync.
    fn sync(&mut self) -> Result<()>;
    /// close.
    fn close(self: Box<Self>) -> Result<()>;
}

/// Name of the directory that a benchmark works in.
fn work_name() -> String {
    format!("emberfs-bench-{}", std::process::id())
}

/// A directory of this host.
#[derive(Debug)]
pub(super) struct DirSubject {
    /// Names and attributes are forgotten as well, those of the whole machine: only root can.
    whole_machine: bool,
    /// Files are opened with O_DIRECT: buffers, offsets and lengths must be aligned.
    direct: bool,
    /// What else makes the next read come from disks.
    dropper: Option<String>,
    work: PathBuf,
}

impl DirSubject {
    pub(super) fn new(path: &Path, whole_machine: bool, direct: bool) -> Result<Self> {
        let work = path.join(work_name());
        fs::create_dir(&work).context(format!("cannot create {}", work.display()))?;
        Ok(Self {
            whole_machine,
            direct,
            dropper: None,
            work,
        })
    }

    /// The command that makes a file system's own client forget: the kernel's caches are not all there are.
    pub(super) fn dropping_caches_by(mut self, command: Option<String>) -> Self {
        self.dropper = command;
        self
    }

    fn flags(&self) -> i32 {
        if self.direct { libc::O_DIRECT } else { 0 }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.work.join(name)
    }
}

impl Subject for DirSubject {
    fn describe(&self) -> String {
        let path = self.work.parent().unwrap_or(&self.work).display();
        if self.direct {
            format!("directory {path} with O_DIRECT")
        } else {
            format!("directory {path}")
        }
    }

    fn create(&self, name: &str) -> Result<Box<dyn Handle>> {
        let path = self.at(name);
        let file = fs::File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .custom_flags(self.flags())
            .open(&path);
        Ok(Box::new(
            file.context(format!("cannot create {}", path.display()))?,
        ))
    }

    fn open(&self, name: &str) -> Result<Box<dyn Handle>> {
        let path = self.at(name);
        let mut options = fs::File::options();
        let file = options.read(true).custom_flags(self.flags()).open(&path);
        Ok(Box::new(
            file.context(format!("cannot open {}", path.display()))?,
        ))
    }

    fn stat(&self, name: &str) -> Result<u64> {
        let path = self.at(name);
        Ok(fs::metadata(&path)
            .context(format!("cannot stat {}", path.display()))?
            .len())
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let (from, to) = (self.at(from), self.at(to));
        // A plain rename: some of the file systems that are measured know no other.
        fs::rename(&from, &to).context(format!("cannot rename {}", from.display()))
    }

    fn unlink(&self, name: &str) -> Result<()> {
        let path = self.at(name);
        fs::remove_file(&path).context(format!("cannot remove {}", path.display()))
    }

    fn drop_caches(&self, names: &[String]) -> Result<()> {
        for name in names {
            let path = self.at(name);
            let what = || format!("cannot drop {} from memory", path.display());
            let file = fs::File::open(&path).context(what())?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).context(what())?;
        }
        // Before the machine's caches, because it may read and write files itself.
        if let Some(command) = &self.dropper {
            // Standard output is the report's.
            let mut shell = Command::new("sh");
            let status = shell.args(["-c", command]).stdout(Stdio::null()).status();
            if !status.context(format!("cannot run {command}"))?.success() {
                return fail(format!("cannot drop caches: {command} failed"));
            }
        }
        if self.whole_machine {
            // Pages that are not on disk yet, such as those of a server that acknowledges early, would stay.
            rustix::fs::sync();
            let _ = fs::write("/proc/sys/vm/drop_caches", "3");
        }
        Ok(())
    }

    fn finish(&self) {
        let _ = fs::remove_dir_all(&self.work);
    }
}

impl Handle for fs::File {
    fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.write_all_at(data, offset).context("cannot write")
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            let read = FileExt::read_at(self, &mut buf[filled..], offset + filled as u64);
            match read.context("cannot read")? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(filled)
    }

    fn sync(&mut self) -> Result<()> {
        self.sync_all().context("cannot fsync")
    }

    fn close(self: Box<Self>) -> Result<()> {
        drop(self);
        Ok(())
    }
}

/// A cluster through the native client.
pub(super) struct NativeSubject {
    client: Client,
    creds: Creds,
    address: String,
    work: InodeId,
}

impl NativeSubject {
    pub(super) fn connect(address: &str) -> Result<Self> {
        let config = ClientConfig {
            meta: address.to_owned(),
            ..ClientConfig::default()
        };
        let client = Client::connect(config)?;
        let creds = Creds::current();
        let work = client.mkdir(&creds, client.root(), work_name().as_bytes(), 0o700)?;
        let work = InodeId(work.inode);
        Ok(Self {
            client,
            creds,
            address: address.to_owned(),
            work,
        })
    }

    fn inode(&self, name: &str) -> Result<emberfs_client::Attr> {
        Ok(self
            .client
            .lookup(&self.creds, self.work, name.as_bytes())?)
    }
}

impl Subject for NativeSubject {
    fn describe(&self) -> String {
        format!("cluster {} through the native client", self.address)
    }

    fn create(&self, name: &str) -> Result<Box<dyn Handle>> {
        let flags = CreateFlags {
            exclusive: true,
            read: true,
            write: true,
            ..CreateFlags::default()
        };
        let made = self
            .client
            .create(&self.creds, self.work, name.as_bytes(), 0o600, flags)?;
        Ok(Box::new(made.1))
    }

    fn open(&self, name: &str) -> Result<Box<dyn Handle>> {
        let inode = InodeId(self.inode(name)?.inode);
        let flags = OpenFlags {
            read: true,
            ..OpenFlags::default()
        };
        Ok(Box::new(self.client.open(&self.creds, inode, flags)?.1))
    }

    fn stat(&self, name: &str) -> Result<u64> {
        Ok(self.inode(name)?.size)
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let (from, to) = ((self.work, from.as_bytes()), (self.work, to.as_bytes()));
        self.client
            .rename(&self.creds, from, to, RenameFlags::default())?;
        Ok(())
    }

    fn unlink(&self, name: &str) -> Result<()> {
        self.client
            .unlink(&self.creds, self.work, name.as_bytes())?;
        Ok(())
    }

    fn fetch(
        &self,
        names: &[String],
        each: &mut dyn FnMut(&str, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let files = self.client.fetch_files(&self.creds, self.work, names);
        for (name, file) in names.iter().zip(files) {
            each(name, &file?.1)?;
        }
        Ok(())
    }

    /// The client forgets a file when it is closed, and storage servers read with O_DIRECT.
    fn drop_caches(&self, _names: &[String]) -> Result<()> {
        Ok(())
    }

    fn finish(&self) {
        let empty = || -> Result<(), emberfs_proto::Error> {
            let (creds, root, name) = (&self.creds, self.client.root(), work_name());
            if creds.uid == 0 {
                // One request, and the rest in the background.
                self.client.remove_tree(creds, root, name.as_bytes())?;
                return Ok(());
            }
            loop {
                let page = self.client.readdir(creds, self.work, b"", 4096)?;
                if page.entries.is_empty() {
                    break;
                }
                for entry in page.entries {
                    self.client.unlink(creds, self.work, &entry.name)?;
                }
            }
            self.client.rmdir(creds, root, name.as_bytes())?;
            Ok(())
        };
        if let Err(error) = empty() {
            let left = Failure::from(error);
            eprintln!(
                "emberfs: /{} stays behind in the cluster: {left}; remove it",
                work_name()
            );
        }
        self.client.shutdown();
    }
}

impl Handle for File {
    fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        Ok(Self::write_at(self, offset, data)?)
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        Ok(Self::read_at(self, offset, buf)?)
    }

    fn read_with(
        &mut self,
        offset: u64,
        buf: &mut [u8],
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        each(&Self::read(self, offset, buf.len())?)
    }

    fn sync(&mut self) -> Result<()> {
        Self::sync(self)?;
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(Self::close(*self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_drops_caches_too_and_its_failure_ends_the_measurement() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let ran = temp.path().join("ran");
        let after = |command: String| {
            let subject = DirSubject::new(temp.path(), false, false).expect("a directory");
            let subject = subject.dropping_caches_by(Some(command));
            let dropped = subject.drop_caches(&[]);
            subject.finish();
            dropped
        };
        after(format!("touch '{}'", ran.display())).expect("dropped");
        assert!(ran.exists());
        let error = after("exit 3".to_owned()).expect_err("reads would be warm");
        assert!(error.to_string().contains("exit 3"), "{error}");
    }
}
