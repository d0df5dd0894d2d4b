//! Files without a name (O_TMPFILE).

use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode, Result, pb};

use crate::meta_rpc::rpc;
use crate::{Attr, Client, CreateFlags, Creds, File, NewMode, OpenFlags};

impl Client {
    /// Creates a file without a name, open for writing, that inherits from the directory `parent` as one created
    /// there would. It goes when nobody has it open any more, or when this client dies. [`Client::link`] gives it
    /// a name, unless it was created `exclusive`. `mode`: a [`NewMode`], or permission bits with the umask already
    /// applied.
    ///
    /// [`ErrorCode::InvalidArgument`] without `write`. [`ErrorCode::Unsupported`]: the metadata server is
    /// older than this client.
    pub async fn create_unnamed(
        &self,
        creds: &Creds,
        parent: InodeId,
        mode: impl Into<NewMode>,
        flags: CreateFlags,
    ) -> Result<(Attr, File)> {
        let NewMode { mode, umask } = mode.into();
        if !flags.write {
            let what = "a file without a name has to be opened for writing";
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
        let request = pb::CreateUnnamedRequest {
            caller: None,
            parent: parent.0,
            mode,
            exclusive: flags.exclusive,
            umask,
        };
        let open = OpenFlags {
            read: flags.read,
            write: true,
            ..OpenFlags::default()
        };
        let reply = rpc!(self.core.meta, creds, Changes, create_unnamed, request)?;
        self.created(creds, None, &reply, open)
    }
}
