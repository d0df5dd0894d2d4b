//! The protocol's changes and the engine's answers, to and from messages.

use std::sync::Arc;

use bytes::Bytes;
use emberfs_proto::checksum::verify_fragments;
use emberfs_proto::convert::required;
use emberfs_proto::ids::{ChunkVersion, TargetId, WriteTag};
use emberfs_proto::layout::MAX_CHUNK_SIZE;
use emberfs_proto::{Error, ErrorCode, Result, pb};

use crate::chain::{Message, Sent, Update, UpdateKind};
use crate::engine::{Mark, REMEMBERED_WRITES, ReadData};

pub(super) fn read_result(result: Result<ReadData>) -> (pb::ReadResult, Bytes) {
    match result {
        Ok(read) => {
            let message = pb::ReadResult {
                status: 0,
                error: None,
                len: read.data.len() as u32,
                checksums: read.checksums,
                version: read.version.0,
                page_size: read.page_size,
            };
            (message, read.data)
        }
        Err(error) => {
            let message = pb::ReadResult {
                status: error.code as u32,
                error: Some(pb::ErrorBody {
                    message: error.message,
                    retry_after_ms: error.retry_after_ms,
                    newer_version: error.newer_version,
                }),
                ..pb::ReadResult::default()
            };
            (message, Bytes::new())
        }
    }
}

/// The message and payload of a change.
fn write_message(update: &Update, chain: pb::ChainRef) -> (pb::WriteRequest, Option<Bytes>) {
    let mut message = pb::WriteRequest {
        chain: Some(chain),
        inode: update.key.inode.0,
        index: update.key.index.0,
        tag: update.tag.map(pb::Tag::from),
        chunk_size: update.chunk_size,
        page_size: update.page_size,
        ..pb::WriteRequest::default()
    };
    let payload = match &update.kind {
        UpdateKind::Write {
            offset,
            data,
            checksums,
            size_hint,
        } => {
            message.set_kind(pb::WriteKind::Write);
            message.offset = *offset;
            message.len = data.len() as u32;
            message.checksums.clone_from(checksums);
            message.size_hint = *size_hint;
            Some(data.clone())
        }
        UpdateKind::Truncate { len, .. } => {
            message.set_kind(pb::WriteKind::Truncate);
            message.len = *len;
            None
        }
        UpdateKind::Remove => {
            message.set_kind(pb::WriteKind::Remove);
            None
        }
    };
    (message, payload)
}

/// What a target tells its successor, with its payload.
pub(in crate::node) fn forward_message(
    message: &Message,
    chain: pb::ChainRef,
    from: TargetId,
) -> (pb::ForwardRequest, Option<Bytes>) {
    let common = pb::ForwardRequest {
        from_target: from.0,
        ..pb::ForwardRequest::default()
    };
    let of = |sent: &Sent, stage: pb::ForwardStage| pb::ForwardRequest {
        write: Some(pb::WriteRequest {
            chain: Some(chain),
            inode: sent.key.inode.0,
            index: sent.key.index.0,
            ..pb::WriteRequest::default()
        }),
        stage: stage.into(),
        sequence: sent.sequence,
        ..common.clone()
    };
    match message {
        Message::Forward(forward) => {
            let (write, payload) = write_message(&forward.update, chain);
            let stage = if forward.early {
                pb::ForwardStage::Early
            } else {
                pb::ForwardStage::Durable
            };
            let body = pb::ForwardRequest {
                write: Some(write),
                version: forward.version.0,
                replace: forward.replace,
                resync: forward.resync,
                committed_chain: forward.committed_chain.0,
                recent: forward.recent.iter().map(mark_message).collect(),
                stage: stage.into(),
                sequence: forward.sequence,
                ..common
            };
            (body, payload)
        }
        Message::Confirm(sent) => (of(sent, pb::ForwardStage::Confirm), None),
        Message::Withdraw(sent) => (of(sent, pb::ForwardStage::Withdraw), None),
    }
}

fn mark_message(mark: &Mark) -> pb::WriteMark {
    pb::WriteMark {
        tag: Some(mark.tag.into()),
        version: mark.version.0,
        len: mark.len,
    }
}

pub(super) fn marks(messages: &[pb::WriteMark]) -> Result<Arc<[Mark]>> {
    if messages.len() > REMEMBERED_WRITES {
        let what = format!(
            "{} marks of earlier writes; at most {REMEMBERED_WRITES}",
            messages.len()
        );
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    }
    let mark = |message: &pb::WriteMark| {
        Ok(Mark {
            tag: WriteTag::try_from(required(message.tag.as_ref(), "tag of a mark")?)?,
            version: ChunkVersion(message.version),
            len: message.len,
        })
    };
    messages.iter().map(mark).collect()
}

/// Decodes a change and verifies its payload: nothing unverified reaches a disk.
pub(super) fn update(message: &pb::WriteRequest, payload: Bytes, whole: bool) -> Result<Update> {
    let key = message.key();
    let invalid =
        |what: String| Error::new(ErrorCode::InvalidArgument, format!("chunk {key}: {what}"));
    let (chunk_size, page_size) = (message.chunk_size, message.page_size);
    let kind = match message.kind() {
        pb::WriteKind::Write => {
            if !chunk_size.is_power_of_two() || chunk_size > MAX_CHUNK_SIZE {
                return Err(invalid(format!("chunk size {chunk_size}")));
            }
            if !page_size.is_power_of_two() || !(4096..=chunk_size).contains(&page_size) {
                return Err(invalid(format!("page size {page_size}")));
            }
            let end = u64::from(message.offset) + payload.len() as u64;
            if end > u64::from(chunk_size) || payload.len() != message.len as usize {
                return Err(invalid(format!(
                    "{} bytes end at {end} of {chunk_size}",
                    payload.len()
                )));
            }
            if payload.is_empty() && !whole {
                return Err(invalid("a write of no bytes".to_owned()));
            }
            verify_fragments(message.offset, &payload, page_size, &message.checksums).map_err(
                |bad| {
                    let what = format!(
                        "chunk {key}: bytes {bad:?} were damaged in transit; send them again"
                    );
                    Error::new(ErrorCode::ChecksumMismatch, what)
                },
            )?;
            UpdateKind::Write {
                offset: message.offset,
                data: payload,
                checksums: message.checksums.clone(),
                size_hint: message.size_hint.min(chunk_size),
            }
        }
        pb::WriteKind::Truncate => UpdateKind::Truncate {
            len: message.len,
            within: match message.within {
                0 => u32::MAX,
                within => within,
            },
        },
        pb::WriteKind::Remove => UpdateKind::Remove,
        pb::WriteKind::Unspecified => return Err(invalid("unknown kind of write".to_owned())),
    };
    let tag = message.tag.as_ref().map(WriteTag::try_from).transpose()?;
    Ok(Update {
        key,
        tag,
        kind,
        chunk_size,
        page_size,
    })
}
