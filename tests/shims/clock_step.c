/* Steps the wall clock of one process.
 *
 * Loaded with LD_PRELOAD, this library adds to every reading of the wall clock the whole number of seconds that stands in
 * the file named by CLOCK_STEP_FILE; it is read anew each time, so that a test steps the clock by writing the file. The
 * monotonic clocks are left alone, as a step of a real clock leaves them.
 *
 * The readings go to the kernel by system calls: dlsym may allocate memory, and an allocator may ask for the time.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long step(void) {
    static const char *path;
    char text[32];
    if (!path) path = getenv("CLOCK_STEP_FILE");
    if (!path) return 0;
    long fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    long length = syscall(SYS_read, fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    if (length <= 0) return 0;
    text[length] = 0;
    return atol(text);
}

static struct timespec stepped(void) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
    now.tv_sec += step();
    return now;
}

int clock_gettime(clockid_t clock, struct timespec *result) {
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) {
        *result = stepped();
        return 0;
    }
    return (int)syscall(SYS_clock_gettime, clock, result);
}

int gettimeofday(struct timeval *restrict result, void *restrict zone) {
    (void)zone;
    struct timespec now = stepped();
    result->tv_sec = now.tv_sec;
    result->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result) {
    time_t now = stepped().tv_sec;
    if (result) *result = now;
    return now;
}
