//! The metadata service by frames: the unary methods of `service Metadata` in meta.proto, without HTTP/2.
//!
//! A request is the method's number (2 bytes, little-endian) and its message, an answer is a message. They travel as the
//! body, or, where that would be too long, as the payload. Why not gRPC, which serves the same methods to tools: each of its calls
//! wakes a task of the connection on either side, and on a host whose cores sleep in between those wake-ups are most of
//! a round trip; here a frame leaves from where it was made, and is answered where it arrives.

use std::sync::Arc;
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use tonic::Request;

use super::client::Peer;
use super::frame::MAX_BODY;
use super::server::{Incoming, Outgoing, Service};
use super::{Call, Channel, Landing, Opcode, decode};
use crate::error::{Error, ErrorCode, Result};
use crate::pb::{self, metadata_server::Metadata};

/// Bytes of a method's number.
const NUMBER_LEN: usize = 2;

/// A caller of the metadata service, for one attempt.
#[derive(Clone)]
pub struct MetadataCaller {
    peer: Arc<Peer>,
    deadline: Instant,
}

impl MetadataCaller {
    /// Calls `peer` until `deadline`.
    pub fn new(peer: Arc<Peer>, deadline: Instant) -> Self {
        Self { peer, deadline }
    }

    async fn call<R: Message + Default>(&self, method: u16, request: &impl Message) -> Result<R> {
        let len = request.encoded_len();
        let mut body = BytesMut::with_capacity(NUMBER_LEN + len);
        body.put_u16_le(method);
        let mut payload = Vec::new();
        if NUMBER_LEN + len <= MAX_BODY as usize {
            put(request, &mut body);
        } else {
            payload.push(request.encode_to_vec().into());
        }
        let call = Call {
            opcode: Opcode::Metadata,
            body: body.freeze(),
            payload,
            landing: Landing::Fresh,
            deadline: self.deadline,
            hop: 0,
        };
        let reply = self.peer.call(call).await?;
        decode(message_of(reply.body, reply.payload.into_bytes()))
    }
}

fn put(message: &impl Message, buffer: &mut BytesMut) {
    message
        .encode(buffer)
        .expect("the buffer grows: it has room for any message");
}

/// Where the message is: in the payload if there is one.
fn message_of(body: Bytes, payload: Bytes) -> Bytes {
    if payload.is_empty() { body } else { payload }
}

/// Serves an implementation of the service.
pub struct MetadataFrames<M>(pub M);

impl<M: Metadata> Service for MetadataFrames<M> {
    async fn handle(&self, request: Incoming) -> Result<Outgoing> {
        let mut body = request.body;
        if request.opcode != Opcode::Metadata || body.len() < NUMBER_LEN {
            let what = format!(
                "a metadata server does not answer {:?}; check the address",
                request.opcode
            );
            return Err(Error::new(ErrorCode::Protocol, what));
        }
        let number = body.split_to(NUMBER_LEN);
        let method = u16::from_le_bytes([number[0], number[1]]);
        let message = message_of(body, request.payload);
        let answer: Bytes = dispatch(&self.0, method, message).await?.into();
        Ok(if answer.len() <= MAX_BODY as usize {
            Outgoing {
                body: answer,
                payload: Vec::new(),
            }
        } else {
            Outgoing {
                body: Bytes::new(),
                payload: vec![answer],
            }
        })
    }
}

macro_rules! methods {
    ($($method:ident($request:ident) -> $reply:ident = $number:literal;)+) => {
        impl MetadataCaller {
            $(
                #[doc = concat!("Calls the method `", stringify!($method), "` once.")]
                pub async fn $method(&self, request: pb::$request) -> Result<pb::$reply> {
                    self.call($number, &request).await
                }
            )+
        }

        async fn dispatch<M: Metadata>(service: &M, method: u16, message: Bytes) -> Result<Vec<u8>> {
            match method {
                $(
                    $number => {
                        let request: pb::$request = decode(message)?;
                        let reply = service.$method(Request::new(request)).await;
                        Ok(reply.map_err(Error::from)?.into_inner().encode_to_vec())
                    }
                )+
                unknown => {
                    let what = format!("this metadata server has no method {unknown}; upgrade it");
                    Err(Error::new(ErrorCode::Unsupported, what))
                }
            }
        }
    };
}

// Numbers are never reused.
methods! {
    attach(AttachRequest) -> AttachReply = 1;
    keep_alive(KeepAliveRequest) -> KeepAliveReply = 2;
    lookup(NameRequest) -> AttrReply = 3;
    lookup_many(LookupManyRequest) -> LookupManyReply = 4;
    get_attr(GetAttrRequest) -> AttrReply = 5;
    set_attr(SetAttrRequest) -> AttrReply = 6;
    create(CreateRequest) -> OpenReply = 7;
    create_unnamed(CreateUnnamedRequest) -> OpenReply = 8;
    mkdir(MkdirRequest) -> AttrReply = 9;
    symlink(SymlinkRequest) -> AttrReply = 10;
    mknod(MknodRequest) -> AttrReply = 11;
    link(LinkRequest) -> AttrReply = 12;
    unlink(NameRequest) -> UnlinkReply = 13;
    rmdir(NameRequest) -> UnlinkReply = 14;
    remove_tree(NameRequest) -> UnlinkReply = 15;
    rename(RenameRequest) -> RenameReply = 16;
    readlink(GetAttrRequest) -> ReadlinkReply = 17;
    read_dir(ReadDirRequest) -> ReadDirReply = 18;
    open(OpenRequest) -> OpenReply = 19;
    sync(SyncRequest) -> AttrReply = 20;
    close(SyncRequest) -> AttrReply = 21;
    close_many(CloseManyRequest) -> CloseManyReply = 22;
    reserve(ReserveRequest) -> AttrReply = 23;
    stat_fs(StatFsRequest) -> StatFsReply = 24;
    lock(LockRequest) -> LockReply = 25;
    unlock(UnlockRequest) -> LockReply = 26;
    test_lock(TestLockRequest) -> TestLockReply = 27;
    cancel_lock(CancelLockRequest) -> LockReply = 28;
    reclaim_locks(ReclaimLocksRequest) -> ReclaimLocksReply = 29;
    resume_locks(ResumeLocksRequest) -> ResumeLocksReply = 30;
    set_xattr(SetXattrRequest) -> AttrReply = 31;
    remove_xattr(XattrRequest) -> AttrReply = 32;
    get_xattr(XattrRequest) -> GetXattrReply = 33;
    list_xattr(GetAttrRequest) -> ListXattrReply = 34;
    set_quota(SetQuotaRequest) -> ListQuotasReply = 35;
    list_quotas(ListQuotasRequest) -> ListQuotasReply = 36;
    set_trash(SetTrashRequest) -> TrashPolicy = 37;
    get_trash(GetAttrRequest) -> TrashPolicy = 38;
    list_trash(ListTrashRequest) -> ListTrashReply = 39;
    restore_trash(RestoreTrashRequest) -> RestoreTrashReply = 40;
    purge_trash(PurgeTrashRequest) -> PurgeTrashReply = 41;
}
