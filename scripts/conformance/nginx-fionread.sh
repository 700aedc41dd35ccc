#!/bin/bash
# nginx again, told by FIONREAD that there is always more: it then reads until
# EAGAIN. What still differs here is not the kernel's FIONREAD.
# shellcheck source=scripts/conformance/nginx.sh
. "${0%/*}/nginx.sh" packages >/dev/null

packages+=(gcc libc6-dev)

prepare() {
	make_bodies
	gcc -O1 -shared -fPIC -o fionread.so -xc - -ldl <<-END
		#define _GNU_SOURCE
		#include <dlfcn.h>
		#include <stdarg.h>
		#include <sys/ioctl.h>

		int ioctl(int fd, unsigned long request, ...)
		{
			static int (*next)(int, unsigned long, void *);
			va_list list;
			void *arg;
			int status;

			va_start(list, request);
			arg = va_arg(list, void *);
			va_end(list);
			if (!next)
				next = (int (*)(int, unsigned long, void *))dlsym(RTLD_NEXT, "ioctl");
			status = next(fd, request, arg);
			if (status == 0 && request == FIONREAD)
				*(int *)arg = 1 << 30;
			return status;
		}
	END
}

suite "$@"
