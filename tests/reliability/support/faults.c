/* Fault injection: this library, preloaded into a program, intercepts every call that changes files below one folder. It
 * counts the calls, records them with their data, and makes call N fail, or all calls from N on, or kills the program and
 * its workers at call N.
 *
 * faults.py controls the library through a file that all processes map, named by FAULTS_CONTROL, and reads the record. A
 * call that the library cannot follow (a shared writable map, an asynchronous write) ends the process with a message: a
 * record with gaps would prove nothing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, ONCE, FROM_THERE_ON, KILL };
enum { CREATE, WRITE, TRUNCATE, ALLOCATE, SYNC_FILE, SYNC_ALL, RENAME, LINK, UNLINK, MKDIR, RMDIR };

struct control {
    _Atomic uint64_t calls;  /* number of calls that change files */
    _Atomic uint64_t clock;  /* orders the recorded calls */
    _Atomic uint64_t failed; /* number of calls that this library made fail */
    uint64_t fail_at;        /* number of the call, from 1 */
    uint32_t mode;
    int32_t error;
    char folder[1024]; /* calls below this folder count; empty: no call counts */
    char log[1024];    /* file of the records; empty: no record */
};

struct record {
    uint64_t size, call, begun, ended, offset, length, is_durable, path_length, other_length;
};

static struct control *control;

static void give_up(const char *why) {
    dprintf(STDERR_FILENO, "faults.c: %s\n", why);
    _exit(99);
}

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("FAULTS_CONTROL");
    if (path == NULL) return;
    int file = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    if (file < 0) give_up("FAULTS_CONTROL cannot be opened");
    void *map = (void *)syscall(SYS_mmap, NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (map == MAP_FAILED) give_up("FAULTS_CONTROL cannot be mapped");
    control = map;
    syscall(SYS_close, file);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Paths */

static int path_of_file(int file, char path[PATH_MAX]) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}

static int path_at(int folder, const char *name, char path[PATH_MAX]) {
    if (name[0] == '/') return snprintf(path, PATH_MAX, "%s", name) < PATH_MAX;
    char start[PATH_MAX];
    if (folder == AT_FDCWD ? getcwd(start, sizeof start) == NULL : !path_of_file(folder, start)) return 0;
    return snprintf(path, PATH_MAX, "%s/%s", start, name) < PATH_MAX;
}

static int is_watched(const char *path) {
    size_t length = control ? strlen(control->folder) : 0;
    return length && strncmp(path, control->folder, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static int is_watched_file(int file, char path[PATH_MAX]) {
    if (control == NULL || control->folder[0] == 0 || !path_of_file(file, path) || !is_watched(path)) return 0;
    struct stat status;
    if (fstat(file, &status) || status.st_nlink == 0) return 0; /* a removed file: no path leads to its data */
    return S_ISREG(status.st_mode) || S_ISDIR(status.st_mode);
}

/* Counting, failing, recording */

static int fails(void) {
    int before = errno;
    uint64_t number = atomic_fetch_add(&control->calls, 1) + 1;
    if (control->mode == COUNT || number < control->fail_at || (control->mode != FROM_THERE_ON && number > control->fail_at)) {
        errno = before;
        return 0;
    }
    atomic_fetch_add(&control->failed, 1);
    if (control->mode == KILL) {
        kill(0, SIGKILL);
        for (;;) pause();
    }
    errno = control->error;
    return 1;
}

static uint64_t now(void) { return atomic_fetch_add(&control->clock, 1) + 1; }

static void record(int call, uint64_t begun, const char *path, const char *other, uint64_t offset,
                   const struct iovec *parts, int count, uint64_t length, int is_durable) {
    if (control->log[0] == 0) return;
    int before = errno;
    struct record head = {.call = call, .begun = begun, .ended = now(), .offset = offset, .length = length,
                          .is_durable = is_durable, .path_length = strlen(path), .other_length = strlen(other)};
    uint64_t data = parts ? length : 0;
    head.size = sizeof head + head.path_length + head.other_length + data;
    char *text = malloc(head.size), *at = text;
    if (text == NULL) give_up("no memory");
    at = mempcpy(at, &head, sizeof head);
    at = mempcpy(at, path, head.path_length);
    at = mempcpy(at, other, head.other_length);
    for (int part = 0; part < count && data; part++) { /* a short write may end within a part */
        size_t size = parts[part].iov_len < data ? parts[part].iov_len : data;
        at = mempcpy(at, parts[part].iov_base, size);
        data -= size;
    }
    int log = syscall(SYS_openat, AT_FDCWD, control->log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (log < 0 || syscall(SYS_write, log, text, head.size) != (ssize_t)head.size) give_up("the record cannot be written");
    syscall(SYS_close, log);
    free(text);
    errno = before;
}

/* Opening */

static int opens(const char *symbol, int folder, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    int (*real)(int, const char *, int, ...) = dlsym(RTLD_NEXT, symbol);
    int is_change = (flags & (O_CREAT | O_TRUNC)) && !(flags & O_TMPFILE & ~O_DIRECTORY);
    if (!is_change || !path_at(folder, name, path) || !is_watched(path)) return real(folder, name, flags, mode);
    struct stat status;
    int is_new = fstatat(folder, name, &status, 0) != 0;
    if (!is_new && !((flags & O_TRUNC) && status.st_size)) return real(folder, name, flags, mode);
    if (fails()) return -1;
    uint64_t begun = now();
    int file = real(folder, name, flags, mode);
    if (file >= 0) record(is_new ? CREATE : TRUNCATE, begun, path, "", 0, NULL, 0, 0, 0);
    return file;
}

#define MODE(flags)                                                                                                    \
    mode_t mode = 0;                                                                                                   \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                             \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode = va_arg(rest, mode_t);                                                                                   \
        va_end(rest);                                                                                                  \
    }

int open(const char *name, int flags, ...) { MODE(flags) return opens("openat", AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE(flags) return opens("openat64", AT_FDCWD, name, flags, mode); }
int openat(int folder, const char *name, int flags, ...) { MODE(flags) return opens("openat", folder, name, flags, mode); }
int openat64(int folder, const char *name, int flags, ...) { MODE(flags) return opens("openat64", folder, name, flags, mode); }
int creat(const char *name, mode_t mode) { return opens("openat", AT_FDCWD, name, O_WRONLY | O_CREAT | O_TRUNC, mode); }
int creat64(const char *name, mode_t mode) { return opens("openat64", AT_FDCWD, name, O_WRONLY | O_CREAT | O_TRUNC, mode); }

/* Writing */

static void wrote(int file, const char *path, uint64_t begun, off_t offset, const struct iovec *parts, int count, ssize_t length) {
    int flags = fcntl(file, F_GETFL);
    record(WRITE, begun, path, "", offset, parts, count, length, (flags & (O_SYNC | O_DSYNC)) != 0);
}

ssize_t write(int file, const void *data, size_t size) {
    char path[PATH_MAX];
    if (!is_watched_file(file, path)) return REAL(write)(file, data, size);
    if (fails()) return -1;
    uint64_t begun = now();
    ssize_t length = REAL(write)(file, data, size);
    struct iovec part = {(void *)data, size};
    if (length > 0) wrote(file, path, begun, lseek(file, 0, SEEK_CUR) - length, &part, 1, length);
    return length;
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    char path[PATH_MAX];
    if (!is_watched_file(file, path)) return REAL(writev)(file, parts, count);
    if (fails()) return -1;
    uint64_t begun = now();
    ssize_t length = REAL(writev)(file, parts, count);
    if (length > 0) wrote(file, path, begun, lseek(file, 0, SEEK_CUR) - length, parts, count, length);
    return length;
}

#define PWRITE(name)                                                                                                   \
    ssize_t name(int file, const void *data, size_t size, off_t offset) {                                              \
        char path[PATH_MAX];                                                                                           \
        if (!is_watched_file(file, path)) return REAL(name)(file, data, size, offset);                                 \
        if (fails()) return -1;                                                                                        \
        uint64_t begun = now();                                                                                        \
        ssize_t length = REAL(name)(file, data, size, offset);                                                         \
        struct iovec part = {(void *)data, size};                                                                      \
        if (length > 0) wrote(file, path, begun, offset, &part, 1, length);                                            \
        return length;                                                                                                 \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define PWRITEV(name)                                                                                                  \
    ssize_t name(int file, const struct iovec *parts, int count, off_t offset) {                                       \
        char path[PATH_MAX];                                                                                           \
        if (!is_watched_file(file, path)) return REAL(name)(file, parts, count, offset);                               \
        if (fails()) return -1;                                                                                        \
        uint64_t begun = now();                                                                                        \
        ssize_t length = REAL(name)(file, parts, count, offset);                                                       \
        if (length > 0) wrote(file, path, begun, offset, parts, count, length);                                        \
        return length;                                                                                                 \
    }
PWRITEV(pwritev)
PWRITEV(pwritev64)

#define TRUNCATE_FILE(name)                                                                                            \
    int name(int file, off_t length) {                                                                                 \
        char path[PATH_MAX];                                                                                           \
        if (!is_watched_file(file, path)) return REAL(name)(file, length);                                             \
        if (fails()) return -1;                                                                                        \
        uint64_t begun = now();                                                                                        \
        int result = REAL(name)(file, length);                                                                         \
        if (result == 0) record(TRUNCATE, begun, path, "", 0, NULL, 0, length, 0);                                     \
        return result;                                                                                                 \
    }
TRUNCATE_FILE(ftruncate)
TRUNCATE_FILE(ftruncate64)

static int allocates(const char *symbol, int file, int mode, off_t offset, off_t length) {
    char path[PATH_MAX];
    int (*real)(int, int, off_t, off_t) = dlsym(RTLD_NEXT, symbol);
    if (!is_watched_file(file, path)) return real(file, mode, offset, length);
    if (mode) give_up("fallocate that changes contents is not followed");
    if (fails()) return -1;
    uint64_t begun = now();
    int result = real(file, mode, offset, length);
    if (result == 0) record(ALLOCATE, begun, path, "", offset, NULL, 0, length, 0);
    return result;
}
int fallocate(int file, int mode, off_t offset, off_t length) { return allocates("fallocate", file, mode, offset, length); }
int fallocate64(int file, int mode, off_t offset, off_t length) { return allocates("fallocate64", file, mode, offset, length); }
int posix_fallocate(int file, off_t offset, off_t length) { return allocates("fallocate", file, 0, offset, length) ? errno : 0; }
int posix_fallocate64(int file, off_t offset, off_t length) { return allocates("fallocate", file, 0, offset, length) ? errno : 0; }

/* Calls that are not followed */

#define NOT_FOLLOWED(type, name, file, parameters, arguments)                                                          \
    type name parameters {                                                                                             \
        char path[PATH_MAX];                                                                                           \
        if (is_watched_file(file, path)) give_up(#name " is not followed");                                            \
        return REAL(name) arguments;                                                                                   \
    }
NOT_FOLLOWED(ssize_t, copy_file_range, out, (int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags), (in, from, out, to, size, flags))
NOT_FOLLOWED(ssize_t, sendfile, out, (int out, int in, off_t *offset, size_t size), (out, in, offset, size))
NOT_FOLLOWED(ssize_t, sendfile64, out, (int out, int in, off_t *offset, size_t size), (out, in, offset, size))
NOT_FOLLOWED(ssize_t, pwritev2, file, (int file, const struct iovec *parts, int count, off_t offset, int flags), (file, parts, count, offset, flags))
NOT_FOLLOWED(ssize_t, pwritev64v2, file, (int file, const struct iovec *parts, int count, off_t offset, int flags), (file, parts, count, offset, flags))

static void refuse_path(const char *name, const char *why) {
    char path[PATH_MAX];
    if (path_at(AT_FDCWD, name, path) && is_watched(path)) give_up(why);
}
int truncate(const char *name, off_t length) {
    refuse_path(name, "truncate is not followed");
    return REAL(truncate)(name, length);
}
int truncate64(const char *name, off64_t length) {
    refuse_path(name, "truncate is not followed");
    return REAL(truncate64)(name, length);
}
int symlink(const char *target, const char *name) {
    refuse_path(name, "symlink is not followed");
    return REAL(symlink)(target, name);
}

static void refuse_writable_map(int protection, int flags, int file) {
    char path[PATH_MAX];
    if ((protection & PROT_WRITE) && (flags & MAP_SHARED) && file >= 0 && is_watched_file(file, path))
        give_up("a file is written through a map");
}
void *mmap(void *at, size_t size, int protection, int flags, int file, off_t offset) {
    refuse_writable_map(protection, flags, file);
    return REAL(mmap)(at, size, protection, flags, file, offset);
}
void *mmap64(void *at, size_t size, int protection, int flags, int file, off_t offset) {
    refuse_writable_map(protection, flags, file);
    return REAL(mmap64)(at, size, protection, flags, file, offset);
}

/* Syncing */

#define SYNC(name)                                                                                                     \
    int name(int file) {                                                                                               \
        char path[PATH_MAX];                                                                                           \
        if (!is_watched_file(file, path)) return REAL(name)(file);                                                     \
        if (fails()) return -1;                                                                                        \
        uint64_t begun = now();                                                                                        \
        int result = REAL(name)(file);                                                                                 \
        if (result == 0) record(SYNC_FILE, begun, path, "", 0, NULL, 0, 0, 0);                                         \
        return result;                                                                                                 \
    }
SYNC(fsync)
SYNC(fdatasync)

int syncfs(int file) {
    char path[PATH_MAX];
    if (!is_watched_file(file, path)) return REAL(syncfs)(file);
    if (fails()) return -1;
    uint64_t begun = now();
    int result = REAL(syncfs)(file);
    if (result == 0) record(SYNC_ALL, begun, path, "", 0, NULL, 0, 0, 0);
    return result;
}

void sync(void) { /* cannot fail; skipped, since it would wait for all file systems of the machine */
    if (control == NULL || control->folder[0] == 0) {
        REAL(sync)();
        return;
    }
    record(SYNC_ALL, now(), control->folder, "", 0, NULL, 0, 0, 0);
}

/* Names */

static int renames(int from, const char *old, int to, const char *new, unsigned flags) {
    char path[PATH_MAX], other[PATH_MAX];
    if (!path_at(from, old, path) || !path_at(to, new, other) || !(is_watched(path) || is_watched(other)))
        return REAL(renameat2)(from, old, to, new, flags);
    if (flags & ~RENAME_NOREPLACE) give_up("an exchange of names is not followed");
    if (fails()) return -1;
    uint64_t begun = now();
    int result = REAL(renameat2)(from, old, to, new, flags);
    if (result == 0) record(RENAME, begun, path, other, 0, NULL, 0, 0, 0);
    return result;
}
int rename(const char *old, const char *new) { return renames(AT_FDCWD, old, AT_FDCWD, new, 0); }
int renameat(int from, const char *old, int to, const char *new) { return renames(from, old, to, new, 0); }
int renameat2(int from, const char *old, int to, const char *new, unsigned flags) { return renames(from, old, to, new, flags); }

static int links(int from, const char *old, int to, const char *new, int flags) {
    char path[PATH_MAX], other[PATH_MAX];
    if (!path_at(from, old, path) || !path_at(to, new, other) || !(is_watched(path) || is_watched(other)))
        return REAL(linkat)(from, old, to, new, flags);
    if (fails()) return -1;
    uint64_t begun = now();
    int result = REAL(linkat)(from, old, to, new, flags);
    if (result == 0) record(LINK, begun, path, other, 0, NULL, 0, 0, 0);
    return result;
}
int link(const char *old, const char *new) { return links(AT_FDCWD, old, AT_FDCWD, new, 0); }
int linkat(int from, const char *old, int to, const char *new, int flags) { return links(from, old, to, new, flags); }

static int changes_name(int call, long number, int folder, const char *name, int argument) {
    char path[PATH_MAX];
    int is_ours = path_at(folder, name, path) && is_watched(path);
    struct stat status;
    if (is_ours && call != MKDIR && fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW)) return -1;
    if (is_ours && fails()) return -1;
    uint64_t begun = is_ours ? now() : 0;
    int result = syscall(number, folder, name, argument);
    if (is_ours && result == 0) record(call, begun, path, "", 0, NULL, 0, 0, 0);
    return result;
}
int unlink(const char *name) { return changes_name(UNLINK, SYS_unlinkat, AT_FDCWD, name, 0); }
int rmdir(const char *name) { return changes_name(RMDIR, SYS_unlinkat, AT_FDCWD, name, AT_REMOVEDIR); }
int unlinkat(int folder, const char *name, int flags) {
    return changes_name(flags & AT_REMOVEDIR ? RMDIR : UNLINK, SYS_unlinkat, folder, name, flags);
}
int mkdir(const char *name, mode_t mode) { return changes_name(MKDIR, SYS_mkdirat, AT_FDCWD, name, mode); }
int mkdirat(int folder, const char *name, mode_t mode) { return changes_name(MKDIR, SYS_mkdirat, folder, name, mode); }
