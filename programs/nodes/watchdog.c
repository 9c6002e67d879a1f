/* Loaded by watchdog.py: ends this process if an environment hangs.
 *
 * It watches from a thread that Python knows nothing of. What hangs may hold the
 * interpreter's lock, as simulators in C and C++ often do, and then no thread of
 * Python's can run. Nor could one end this process once its parent has gone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct watch {
  /* Python counts up when a step begins, and when it ends: odd within a step. */
  volatile int64_t count;
  double seconds;
  char *message;
  pid_t parent;
};

/* Longer than processes.py takes to end an orphan that can still end by itself. */
static const double orphan_seconds = 12;

/* Counts looks, not time, as the process may have been stopped in between. */
static void *look(void *argument) {
  const struct timespec every = {.tv_nsec = 500 * 1000 * 1000};
  struct watch *watch = argument;
  int64_t seen = 0;
  double watched = 0, orphaned = 0;
  while (watched < watch->seconds) {
    nanosleep(&every, NULL);
    int64_t count = watch->count;
    watched = count % 2 && count == seen ? watched + 0.5 : 0;
    seen = count;
    if (getppid() == watch->parent) continue;
    orphaned += 0.5;
    if (orphaned < orphan_seconds) continue;
    if (getpgrp() == getpid()) kill(0, SIGKILL); /* And what it has started. */
    _exit(1);
  }
  ssize_t written = write(STDOUT_FILENO, watch->message, strlen(watch->message));
  (void)written; /* If nobody reads, there is no one to tell. */
  _exit(1);
}

/* Returns the count, for Python to change, or null and sets errno. */
volatile int64_t *watch_steps(double seconds, const char *message) {
  struct watch *watch = calloc(1, sizeof *watch);
  if (!watch || !(watch->message = strdup(message))) return NULL;
  watch->seconds = seconds;
  watch->parent = getppid();
  sigset_t all, before;
  pthread_t thread;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before); /* Signals are for other threads. */
  errno = pthread_create(&thread, NULL, look, watch);
  int error = errno;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  errno = error;
  return error ? NULL : &watch->count;
}
