/* Two tun devices "wan" in two network namespaces, joined by a link of given delay and rate.

   wan ONE_WAY_MS MBIT NAMESPACE NAMESPACE

   Not every kernel has netem, which would do the same. Packets wait in a queue for each direction: a packet
   leaves when those before it have been sent at the rate, and arrives the delay later. What would wait longer
   than 200 ms for its turn is dropped, as routers do. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

typedef long long ns;

struct packet {
  ns due;
  int size;
  struct packet *next;
  char bytes[];
};

struct queue {
  struct packet *first, **last;
  ns free_at, waiting;
} queues[2];

static ns now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void check(int result, const char *what) {
  if (result < 0) {
    perror(what);
    exit(1);
  }
}

static int device_in(const char *namespace) {
  char path[256];
  snprintf(path, sizeof path, "/run/netns/%s", namespace);
  int ns_fd = open(path, O_RDONLY);
  check(ns_fd, path);
  check(setns(ns_fd, CLONE_NEWNET), "setns");
  close(ns_fd);
  int tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
  check(tun, "/dev/net/tun");
  struct ifreq request;
  memset(&request, 0, sizeof request);
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  strcpy(request.ifr_name, "wan");
  check(ioctl(tun, TUNSETIFF, &request), "TUNSETIFF");
  return tun;
}

int main(int count, char **arguments) {
  if (count != 5) return 2;
  double ms = atof(arguments[1]), mbit = atof(arguments[2]);
  int ends[2] = {device_in(arguments[3]), device_in(arguments[4])};
  ns delay = ms * 1e6, most = mbit * 1e6 / 8 * 0.2;
  static char bytes[70000];
  for (int i = 0; i < 2; i++) queues[i].last = &queues[i].first;
  puts("up");
  fflush(stdout);
  for (;;) {
    ns t = now(), next = t + 1000000000LL;
    for (int i = 0; i < 2; i++) {
      struct queue *q = &queues[i];
      while (q->first && q->first->due <= t) {
        struct packet *p = q->first;
        if (write(ends[1 - i], p->bytes, p->size) < 0 && errno == EAGAIN) break;
        q->first = p->next;
        if (!q->first) q->last = &q->first;
        q->waiting -= p->size;
        free(p);
      }
      if (q->first && q->first->due < next) next = q->first->due;
    }
    ns wait = next - now();
    struct timespec ts = {wait > 0 ? wait / 1000000000LL : 0, wait > 0 ? wait % 1000000000LL : 0};
    struct pollfd polled[2] = {{ends[0], POLLIN, 0}, {ends[1], POLLIN, 0}};
    ppoll(polled, 2, &ts, 0);
    for (int i = 0; i < 2; i++) {
      if (!(polled[i].revents & POLLIN)) continue;
      struct queue *q = &queues[i];
      for (int k = 0, size; k < 64 && (size = read(ends[i], bytes, sizeof bytes)) > 0; k++) {
        t = now();
        if (q->waiting + size > most) continue;
        if (q->free_at < t) q->free_at = t;
        q->free_at += (ns)(size * 8e3 / mbit);
        struct packet *p = malloc(sizeof *p + size);
        if (!p) return 1;
        p->size = size;
        memcpy(p->bytes, bytes, size);
        p->next = 0;
        p->due = q->free_at + delay;
        *q->last = p;
        q->last = &p->next;
        q->waiting += size;
      }
    }
  }
}
