/* Preloaded into processes by doors.py: binds to one address instead of all.
 *
 * Courier and Reverb listen on [::], and have no option for it. The address is
 * in IMPALA_PPO_LISTEN; without a valid one it is loopback, and "all" changes
 * nothing. Programs that call the kernel without libc are not affected.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* The least that the kernel accepts: the scope of IPv6 addresses was added later. */
#define IPV4_SIZE sizeof(struct sockaddr_in)
#define IPV6_SIZE offsetof(struct sockaddr_in6, sin6_scope_id)

typedef int bind_function(int, const struct sockaddr *, socklen_t);

static const struct in6_addr any_mapped = {{{[10] = 0xff, [11] = 0xff}}};

int bind(int fd, const struct sockaddr *given, socklen_t size) {
  bind_function *real = (bind_function *)dlsym(RTLD_NEXT, "bind");
  const char *listen = getenv("IMPALA_PPO_LISTEN");
  struct sockaddr_storage changed = {0};
  struct in_addr *ipv4 = &((struct sockaddr_in *)&changed)->sin_addr, chosen;
  struct in6_addr *ipv6 = &((struct sockaddr_in6 *)&changed)->sin6_addr;
  if (!given || size > sizeof changed || (listen && !strcmp(listen, "all")))
    return real(fd, given, size);
  memcpy(&changed, given, size);
  if (!listen || inet_pton(AF_INET, listen, &chosen) != 1)
    chosen.s_addr = htonl(INADDR_LOOPBACK);

  if (changed.ss_family == AF_INET && size >= IPV4_SIZE &&
      ipv4->s_addr == htonl(INADDR_ANY)) {
    *ipv4 = chosen;
  } else if (changed.ss_family == AF_INET6 && size >= IPV6_SIZE &&
             (IN6_IS_ADDR_UNSPECIFIED(ipv6) ||
              !memcmp(ipv6, &any_mapped, sizeof any_mapped))) {
    int only_ipv6 = 0;
    socklen_t length = sizeof only_ipv6;
    getsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only_ipv6, &length);
    if (!listen || inet_pton(AF_INET6, listen, ipv6) != 1) {
      *ipv6 = only_ipv6 ? in6addr_loopback : any_mapped;
      if (!only_ipv6) memcpy(ipv6->s6_addr + 12, &chosen, sizeof chosen);
    }
  }
  return real(fd, (const struct sockaddr *)&changed, size);
}
