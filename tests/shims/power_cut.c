/* Turns kill -9 of a Redis into a power cut.
 *
 * The kernel keeps what a killed process has written; a machine that loses power keeps only what was synced. Loaded with
 * LD_PRELOAD, this library holds back every byte written to an append-only file until the program syncs that file, so that
 * a killed server leaves on its disk exactly what a power cut would have left in the worst case.
 *
 * Only files whose name ends in ".aof" are treated so. A clean close writes the rest, as a clean shutdown does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

/* More files than a test's server ever opens; a higher number goes past us and is written at once. */
#define FILES_MAX 4096

/* What a file is still owed, by descriptor. */
struct held {
    int watched;
    char *bytes;
    size_t length;
    size_t capacity;
};

static struct held files[FILES_MAX];
/* The server writes in one thread and syncs in another. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *next(const char *name) {
    return dlsym(RTLD_NEXT, name);
}

static int is_append_only_file(const char *path) {
    size_t length = strlen(path);
    return length >= 4 && strcmp(path + length - 4, ".aof") == 0;
}

static int opened(int fd, const char *path, int flags) {
    if (fd >= 0 && fd < FILES_MAX && (flags & O_ACCMODE) != O_RDONLY && is_append_only_file(path)) {
        pthread_mutex_lock(&lock);
        files[fd].watched = 1;
        files[fd].length = 0;
        pthread_mutex_unlock(&lock);
    }
    return fd;
}

static int watched(int fd) {
    return fd >= 0 && fd < FILES_MAX && files[fd].watched;
}

/* Hands to the kernel what was held back. */
static int write_out(int fd) {
    static ssize_t (*real_write)(int, const void *, size_t);
    if (!real_write) real_write = next("write");
    int result = 0;
    pthread_mutex_lock(&lock);
    struct held *file = &files[fd];
    size_t done = 0;
    while (done < file->length) {
        ssize_t wrote = real_write(fd, file->bytes + done, file->length - done);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) {
            result = -1;
            break;
        }
        done += (size_t)wrote;
    }
    memmove(file->bytes, file->bytes + done, file->length - done);
    file->length -= done;
    pthread_mutex_unlock(&lock);
    return result;
}

/* A permission is given only with O_CREAT, and reading it otherwise would read what is not there. */
static mode_t permission(int flags, va_list more) {
    return (flags & O_CREAT) ? (mode_t)va_arg(more, int) : 0;
}

int open(const char *path, int flags, ...) {
    int (*real_open)(const char *, int, ...) = next("open");
    va_list more;
    va_start(more, flags);
    mode_t mode = permission(flags, more);
    va_end(more);
    return opened(real_open(path, flags, mode), path, flags);
}

int open64(const char *path, int flags, ...) {
    int (*real_open)(const char *, int, ...) = next("open64");
    va_list more;
    va_start(more, flags);
    mode_t mode = permission(flags, more);
    va_end(more);
    return opened(real_open(path, flags, mode), path, flags);
}

ssize_t write(int fd, const void *bytes, size_t length) {
    static ssize_t (*real_write)(int, const void *, size_t);
    if (!real_write) real_write = next("write");
    if (!watched(fd)) return real_write(fd, bytes, length);
    pthread_mutex_lock(&lock);
    struct held *file = &files[fd];
    if (file->length + length > file->capacity) {
        size_t capacity = (file->length + length) * 2;
        char *grown = realloc(file->bytes, capacity);
        if (!grown) {
            pthread_mutex_unlock(&lock);
            errno = ENOMEM;
            return -1;
        }
        file->bytes = grown;
        file->capacity = capacity;
    }
    memcpy(file->bytes + file->length, bytes, length);
    file->length += length;
    pthread_mutex_unlock(&lock);
    return (ssize_t)length;
}

int fsync(int fd) {
    int (*real_fsync)(int) = next("fsync");
    if (watched(fd) && write_out(fd) != 0) return -1;
    return real_fsync(fd);
}

int fdatasync(int fd) {
    int (*real_fdatasync)(int) = next("fdatasync");
    if (watched(fd) && write_out(fd) != 0) return -1;
    return real_fdatasync(fd);
}

int close(int fd) {
    int (*real_close)(int) = next("close");
    if (watched(fd)) {
        write_out(fd);
        files[fd].watched = 0;
    }
    return real_close(fd);
}
