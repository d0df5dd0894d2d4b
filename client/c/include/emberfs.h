/* EmberFS for programs in C and whatever can call C. See docs/c-api.md.
 *
 * Every function that can fail answers 0 or a count, or a negative errno; emberfs_last_error() then says
 * in words, for this thread, what failed. Unknown handles are -EBADF, NULL and nonsense -EINVAL.
 * Every function may be called from any thread. In a forked child every function is -EPERM if the
 * parent had connected. */
#ifndef EMBERFS_H
#define EMBERFS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EMBERFS_ABI_VERSION 1u
/* Most bytes of one ring operation. */
#define EMBERFS_MAX_LENGTH (64u << 20)
/* Most entries, and most registered buffers, of one ring. */
#define EMBERFS_MAX_ENTRIES 65536u

/* Handles. 0 is never a handle. */
typedef uint64_t emberfs_client;
typedef uint64_t emberfs_file;
typedef uint64_t emberfs_ring;

/* Set to zero, then `size` to sizeof. A field that is 0 takes its default. */
struct emberfs_options {
    uint32_t size;
    uint32_t threads;            /* that move bytes; 4 */
    uint64_t connect_timeout_ms; /* 30 s */
    uint64_t io_timeout_ms;      /* how long one call waits for servers that are down; 2 min */
    uint64_t memory_bytes;       /* read-ahead and buffered writes; 256 MiB */
};

/* Set `size` to sizeof before the call. */
struct emberfs_stat {
    uint32_t size;
    uint32_t mode; /* type and permission bits, as st_mode */
    uint64_t inode;
    uint64_t length; /* bytes */
    uint32_t uid;
    uint32_t gid;
    int64_t mtime_sec;
    uint32_t mtime_nsec;
    uint32_t nlink;
};

enum emberfs_op {
    EMBERFS_OP_NOP = 0,
    EMBERFS_OP_READ = 1,
    EMBERFS_OP_WRITE = 2,
    EMBERFS_OP_FSYNC = 3
};

/* One operation. Fields that an operation does not use are ignored; flags and reserved are 0. */
struct emberfs_sqe {
    uint32_t op;
    uint32_t flags;
    emberfs_file file;
    uint32_t buffer; /* from emberfs_ring_register */
    uint32_t reserved;
    uint64_t buffer_offset; /* bytes */
    uint64_t length;        /* bytes */
    uint64_t offset;        /* in the file, bytes */
    uint64_t user_data;     /* comes back in the completion */
};

struct emberfs_cqe {
    uint64_t user_data;
    int64_t result; /* bytes (fewer than asked for only at the end of the file), 0, or -errno */
};

uint32_t emberfs_abi_version(void);
/* Never NULL. Valid until this thread's next call that fails. */
const char *emberfs_last_error(void);

/* `address` is host:port of the metadata server; `options` may be NULL. */
int emberfs_connect(const char *address, const struct emberfs_options *options, emberfs_client *client);
/* -EBUSY while files or rings of the client exist. */
int emberfs_disconnect(emberfs_client client);

/* `flags` are open(2)'s O_RDONLY, O_WRONLY, O_RDWR, O_CREAT, O_EXCL, O_TRUNC, O_APPEND, O_DIRECT, O_SYNC,
 * O_CLOEXEC; no umask is applied to `mode`. Paths start at the root of the file system. */
int emberfs_open(emberfs_client client, const char *path, int flags, uint32_t mode, emberfs_file *file);
/* Flushes. The handle is gone even if this fails. */
int emberfs_close(emberfs_file file);
int emberfs_stat(emberfs_client client, const char *path, struct emberfs_stat *stat);
int64_t emberfs_pread(emberfs_file file, void *buffer, size_t length, uint64_t offset);
int64_t emberfs_pwrite(emberfs_file file, const void *buffer, size_t length, uint64_t offset);
int emberfs_fsync(emberfs_file file);

/* `entries`: most operations between submit and wait. */
int emberfs_ring_create(emberfs_client client, uint32_t entries, emberfs_ring *ring);
/* Answers the buffer's index. The memory stays the caller's, and must stay mapped until it is unregistered
 * or the ring is destroyed. */
int emberfs_ring_register(emberfs_ring ring, void *address, size_t length);
/* -EBUSY while an operation on the buffer is in flight. */
int emberfs_ring_unregister(emberfs_ring ring, uint32_t buffer);
/* Answers how many, from the first, were accepted: fewer when the ring is full. An accepted operation
 * that makes no sense completes with -EINVAL, -EBADF or -EFAULT. */
int emberfs_ring_submit(emberfs_ring ring, const struct emberfs_sqe *entries, uint32_t count);
/* Waits for `min` completions and takes at most `max`. `timeout_ns` < 0: for ever. Answers how many were
 * taken, even if fewer than `min` came in time; -ETIMEDOUT if none did. */
int emberfs_ring_wait(emberfs_ring ring, struct emberfs_cqe *completions, uint32_t max, uint32_t min,
                      int64_t timeout_ns);
/* Readable after a completion; the caller reads it and must not close it. Dies with the ring. */
int emberfs_ring_eventfd(emberfs_ring ring);
/* Waits for what is in flight; after it no registered memory is touched. Completions not taken are lost. */
int emberfs_ring_destroy(emberfs_ring ring);

#ifdef __cplusplus
}
#endif
#endif
