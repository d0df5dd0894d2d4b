/* A small loader: writes a file of records, then reads them in shuffled order into registered memory, and
 * checks each. cc loader.c -lemberfs_c -o loader && ./loader 127.0.0.1:7400 /records */
#include <emberfs.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define RECORDS 512u
#define RECORD 4096u
#define DEPTH 64u

#define CHECK(call)                                                   \
    do {                                                              \
        if ((call) < 0) {                                             \
            fprintf(stderr, "loader: %s\n", emberfs_last_error());    \
            exit(1);                                                  \
        }                                                             \
    } while (0)

/* Byte `at` of record `record`. */
static unsigned char expected(uint64_t record, uint32_t at) {
    return (unsigned char)(record * 31 + at * 7 + record / 256);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: loader HOST:PORT PATH\n");
        return 2;
    }
    if (emberfs_abi_version() != EMBERFS_ABI_VERSION) {
        fprintf(stderr, "loader: the library is of another version than emberfs.h\n");
        return 2;
    }
    struct emberfs_options options;
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.threads = 2;
    emberfs_client client;
    emberfs_file file;
    emberfs_ring ring;
    CHECK(emberfs_connect(argv[1], &options, &client));
    CHECK(emberfs_open(client, argv[2], O_CREAT | O_TRUNC | O_RDWR, 0644, &file));
    CHECK(emberfs_ring_create(client, DEPTH, &ring));

    /* Our memory: it could be huge pages, or pinned for a GPU. One slot per operation in flight. */
    size_t bytes = (size_t)DEPTH * RECORD;
    unsigned char *slots =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (slots == MAP_FAILED) {
        perror("loader: mmap");
        return 1;
    }
    int buffer = emberfs_ring_register(ring, slots, bytes);
    CHECK(buffer);

    unsigned char record[RECORD];
    for (uint64_t r = 0; r < RECORDS; r++) {
        for (uint32_t i = 0; i < RECORD; i++) record[i] = expected(r, i);
        CHECK(emberfs_pwrite(file, record, RECORD, r * RECORD));
    }
    CHECK(emberfs_fsync(file));

    struct emberfs_sqe sqes[DEPTH];
    struct emberfs_cqe cqes[DEPTH];
    uint64_t checked = 0;
    for (uint64_t first = 0; first < RECORDS; first += DEPTH) {
        memset(sqes, 0, sizeof sqes);
        for (uint32_t slot = 0; slot < DEPTH; slot++) {
            /* 197 and 512 have no common factor: every record comes once. */
            uint64_t r = (first + slot) * 197 % RECORDS;
            sqes[slot].op = EMBERFS_OP_READ;
            sqes[slot].file = file;
            sqes[slot].buffer = (uint32_t)buffer;
            sqes[slot].buffer_offset = (uint64_t)slot * RECORD;
            sqes[slot].length = RECORD;
            sqes[slot].offset = r * RECORD;
            sqes[slot].user_data = r << 32 | slot;
        }
        uint32_t submitted = 0, completed = 0;
        while (completed < DEPTH) {
            if (submitted < DEPTH) {
                int n = emberfs_ring_submit(ring, sqes + submitted, DEPTH - submitted);
                CHECK(n);
                submitted += (uint32_t)n;
            }
            int n = emberfs_ring_wait(ring, cqes, DEPTH, 1, -1);
            CHECK(n);
            for (int c = 0; c < n; c++) {
                uint64_t r = cqes[c].user_data >> 32;
                const unsigned char *slot = slots + (cqes[c].user_data & 0xffffffffu) * RECORD;
                if (cqes[c].result != (int64_t)RECORD) {
                    fprintf(stderr, "loader: record %llu: result %lld\n", (unsigned long long)r,
                            (long long)cqes[c].result);
                    return 1;
                }
                for (uint32_t i = 0; i < RECORD; i++) {
                    if (slot[i] != expected(r, i)) {
                        fprintf(stderr, "loader: record %llu has a wrong byte\n", (unsigned long long)r);
                        return 1;
                    }
                }
                checked++;
            }
            completed += (uint32_t)n;
        }
    }
    CHECK(emberfs_ring_destroy(ring)); /* from here the slots are ours alone */
    munmap(slots, bytes);
    CHECK(emberfs_close(file));
    CHECK(emberfs_disconnect(client));
    printf("%llu records of %u bytes are right\n", (unsigned long long)checked, RECORD);
    return 0;
}
