//! Write channels: what makes a retried write happen once.
//!
//! Storage servers remember the last write of each (client, channel). A channel therefore carries
//! one write at a time, numbered from 1 ([`Identity::base`] later); a retry repeats the number.

use emberfs_proto::ids::{ClientId, WriteTag};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::Identity;

/// Channels of a client, and so its writes in flight.
pub(crate) const CHANNELS: u32 = 256;

/// The channels of one client.
pub(crate) struct Channels {
    client: ClientId,
    // Last in, first out: few writes at a time use few channels, and servers remember few.
    free: Mutex<Vec<Channel>>,
    permits: Semaphore,
}

#[derive(Clone, Copy)]
struct Channel {
    number: u32,
    used: u64,
}

/// One channel, held for one write. The write must have ended, one way or the other, before this goes.
pub(crate) struct ChannelLease<'a> {
    channels: &'a Channels,
    channel: Channel,
    _permit: SemaphorePermit<'a>,
}

impl Channels {
    /// All free.
    pub(crate) fn new(identity: Identity) -> Self {
        let used = identity.base();
        let free = (0..CHANNELS)
            .rev()
            .map(|number| Channel { number, used })
            .collect();
        Self {
            client: identity.client,
            free: Mutex::new(free),
            permits: Semaphore::new(CHANNELS as usize),
        }
    }

    /// Waits for a free channel and takes its next number.
    pub(crate) async fn acquire(&self) -> ChannelLease<'_> {
        let permit = self
            .permits
            .acquire()
            .await
            .expect("the semaphore is never closed: nothing calls close");
        let channel = self.free.lock().pop();
        let mut channel =
            channel.expect("a permit stands for a free channel; it returns after the channel");
        channel.used += 1;
        ChannelLease {
            channels: self,
            channel,
            _permit: permit,
        }
    }
}

impl ChannelLease<'_> {
    /// The name of this write.
    pub(crate) fn tag(&self) -> WriteTag {
        let Channel { number, used } = self.channel;
        WriteTag {
            client: self.channels.client,
            channel: number,
            sequence: used,
        }
    }
}

impl Drop for ChannelLease<'_> {
    fn drop(&mut self) {
        // Before the permit: fields are dropped after this body.
        self.channels.free.lock().push(self.channel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_write_has_its_own_tag_and_each_channel_one_write() {
        let client = ClientId(9);
        let identity = Identity {
            client,
            instance: 0,
        };
        let channels = Channels::new(identity);
        let mut seen = std::collections::HashSet::new();
        let held: Vec<_> =
            futures::future::join_all((0..CHANNELS).map(|_| channels.acquire())).await;
        assert!(held.iter().all(|lease| seen.insert(lease.tag().channel)));
        let waiting =
            tokio::time::timeout(std::time::Duration::from_millis(10), channels.acquire());
        assert!(waiting.await.is_err(), "more writes than channels");
        let first = held[0].tag();
        drop(held);
        let mut again = Vec::new();
        for _ in 0..CHANNELS {
            again.push(channels.acquire().await);
        }
        let next = again
            .iter()
            .find(|l| l.tag().channel == first.channel)
            .unwrap();
        assert_eq!(next.tag().sequence, first.sequence + 1);
    }

    #[tokio::test]
    async fn a_later_process_begins_above_all_that_an_earlier_one_used() {
        let client = ClientId(9);
        let first = |instance| async move {
            let channels = Channels::new(Identity { client, instance });
            channels.acquire().await.tag()
        };
        let (earlier, later) = (first(1).await, first(2).await);
        assert_eq!(earlier.channel, later.channel);
        assert_eq!(later.sequence, earlier.sequence + (1 << 40));
    }
}
