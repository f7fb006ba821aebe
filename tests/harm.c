/* LD_PRELOAD: the n-th call that reads or writes below a folder fails, and every one after it.
 *
 * FAULT_UNDER is the folder (no links in it), FAULT_CALL "read" or "write", FAULT_AFTER how many calls are let
 * through, FAULT_ERRNO what the others say.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long seen;

static int fails(const char *call, int file) {
  const char *under = getenv("FAULT_UNDER"), *which = getenv("FAULT_CALL");
  char link[64], path[PATH_MAX];
  if (!under || !which || strcmp(which, call)) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0 || strncmp(path, under, strlen(under))) return 0;
  if (__sync_fetch_and_add(&seen, 1) < atol(getenv("FAULT_AFTER"))) return 0;
  errno = atoi(getenv("FAULT_ERRNO"));
  return 1;
}

#define INSTEAD(result, name, call, file, parameters, arguments)                                             \
  result name parameters {                                                                                   \
    static result(*real) parameters;                                                                         \
    if (!real) real = (result(*) parameters)dlsym(RTLD_NEXT, #name);                                         \
    return fails(call, file) ? -1 : real arguments;                                                          \
  }

INSTEAD(ssize_t, read, "read", file, (int file, void *to, size_t n), (file, to, n))
INSTEAD(ssize_t, pread, "read", file, (int file, void *to, size_t n, off_t at), (file, to, n, at))
INSTEAD(ssize_t, pread64, "read", file, (int file, void *to, size_t n, off64_t at), (file, to, n, at))
INSTEAD(ssize_t, preadv, "read", file, (int file, const struct iovec *to, int n, off_t at), (file, to, n, at))
INSTEAD(ssize_t, preadv64, "read", file, (int file, const struct iovec *to, int n, off64_t at), (file, to, n, at))
INSTEAD(ssize_t, write, "write", file, (int file, const void *from, size_t n), (file, from, n))
INSTEAD(ssize_t, pwrite, "write", file, (int file, const void *from, size_t n, off_t at), (file, from, n, at))
INSTEAD(ssize_t, pwrite64, "write", file, (int file, const void *from, size_t n, off64_t at), (file, from, n, at))
INSTEAD(ssize_t, copy_file_range, "write", to,
        (int from, off64_t *a, int to, off64_t *b, size_t n, unsigned flags), (from, a, to, b, n, flags))
INSTEAD(int, fsync, "write", file, (int file), (file))
