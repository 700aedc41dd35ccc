# shellcheck shell=bash
# Bodies of many sizes through HTTP, to be sourced by the suites of servers. curl
# and wrk are the clients; what arrives is compared byte for byte.

bodies=(0 1 4096 65537 1048576 33554432)

make_bodies() {
	local size
	mkdir -p www
	for size in "${bodies[@]}"; do
		head -c "$size" /dev/urandom >"www/$size"
		base64 -w 76 "www/$size" >"www/$size.txt"
	done
	chmod -R a+rX .
}

# An nginx that serves the bodies: 8080 by sendfile and chunked (ssi makes the
# length unknown), 8081 without sendfile and with uploads, 8082 proxies to 8081
# with connections kept, 8083 is a relay of the stream module, 8443 is TLS.
serve_bodies() {
	mkdir -p nginx upload
	chmod 777 nginx upload
	openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost \
		-keyout key.pem -out cert.pem 2>/dev/null
	cat >nginx.conf <<-END
		load_module modules/ngx_stream_module.so;
		worker_processes 2;
		pid $WORK/nginx/pid;
		error_log stderr warn;
		daemon off;
		user nobody nogroup;
		events { worker_connections 1024; }
		http {
			access_log off;
			client_max_body_size 0;
			client_body_temp_path $WORK/nginx/body;
			proxy_temp_path $WORK/nginx/proxy;
			fastcgi_temp_path $WORK/nginx/fastcgi;
			uwsgi_temp_path $WORK/nginx/uwsgi;
			scgi_temp_path $WORK/nginx/scgi;
			keepalive_requests 1000000;
			upstream kept { server 127.0.0.1:8081; keepalive 8; }
			server {
				listen 8080;
				root $SETUP/www;
				sendfile on;
				location /chunked/ { alias $SETUP/www/; ssi on; ssi_types *; }
				location /gzip/ { alias $SETUP/www/; gzip on; gzip_min_length 1; gzip_types *; }
			}
			server {
				listen 8081;
				root $SETUP/www;
				sendfile off;
				location /upload/ { alias $WORK/upload/; dav_methods PUT; create_full_put_path on; }
			}
			server {
				listen 8082;
				proxy_http_version 1.1;
				proxy_set_header Connection "";
				location / { proxy_pass http://kept; }
				location /streaming/ {
					proxy_pass http://kept/;
					proxy_buffering off;
					proxy_request_buffering off;
				}
			}
			server {
				listen 8443 ssl;
				ssl_certificate $WORK/cert.pem;
				ssl_certificate_key $WORK/key.pem;
				root $SETUP/www;
				location /upload/ { proxy_pass http://kept; }
			}
		}
		stream { server { listen 8083; proxy_pass 127.0.0.1:8081; } }
	END
	${nginx_preload:+env "LD_PRELOAD=$nginx_preload"} nginx -e stderr -c "$WORK/nginx.conf" &
	wait_for listening 8083
	wait_for listening 8443
}

fetch() {
	curl -sS --fail --insecure --max-time 15 --noproxy '*' "$@"
}

# Every body twice on one connection.
kept_alive() {
	local base=$1 size round arguments=() connects
	rm -rf got
	mkdir got
	for round in 1 2; do
		for size in "${bodies[@]}"; do
			arguments+=(-o "got/$round-$size" "$base/$size")
		done
	done
	connects=$(fetch -w '%{num_connects}\n' "${arguments[@]}" | awk '{ sum += $1 } END { print sum }') || return
	for round in 1 2; do
		for size in "${bodies[@]}"; do
			cmp "got/$round-$size" "$SETUP/www/$size" || return
		done
	done
	[[ $connects == 1 ]] || {
		echo "$connects connections instead of one"
		return 1
	}
}

in_parallel() {
	local base=$1 i arguments=()
	rm -rf got
	mkdir got
	for i in {1..24}; do
		arguments+=(-o "got/$i" "$base/1048576")
	done
	fetch --parallel --parallel-max 24 --no-progress-meter "${arguments[@]}" || return
	for i in {1..24}; do
		cmp "got/$i" "$SETUP/www/1048576" || return
	done
}

slow_reader() {
	fetch --limit-rate 16M -o got-slow "$1/33554432" && cmp got-slow "$SETUP/www/33554432"
}

compressed() {
	fetch --compressed -o got-text "$1/1048576.txt" && cmp got-text "$SETUP/www/1048576.txt"
}

# upload BASE CURL-OPTION...: every body, and each compared where nginx stored it.
upload() {
	local base=$1 size
	shift
	for size in "${bodies[@]}"; do
		rm -f "upload/$size"
		fetch "$@" -o /dev/null -T - "$base/upload/$size" <"$SETUP/www/$size" || return
		cmp "upload/$size" "$SETUP/www/$size" || return
	done
}

# Sixteen requests are sent before the first answer is read.
pipelined() {
	cat >pipeline.lua <<-END
		init = function(args)
			wrk.headers["Host"] = "localhost"
			local all = {}
			for i = 1, 16 do all[i] = wrk.format("GET", "/4096") end
			pipeline = table.concat(all)
		end
		request = function() return pipeline end
		response = function(status, headers, body)
			if status ~= 200 or #body ~= 4096 then wrong = (wrong or 0) + 1; print("wrong answer") end
		end
	END
	loaded -s pipeline.lua "$1"
}

# Many answers, no error.
loaded() {
	local output
	output=$(wrk -t 2 -c 16 -d 2 --timeout 10 "$@") || return
	echo "$output"
	! grep -qE 'Socket errors|Non-2xx|wrong answer' <<<"$output" &&
		grep -qE '^ *[1-9][0-9]* requests in' <<<"$output"
}

# all_bodies NAME BASE [CURL-OPTION...]
all_bodies() {
	local name=$1 base=$2
	check "$name: keep-alive" kept_alive "$base"
	check "$name: 24 in parallel" in_parallel "$base"
	check "$name: slow reader" slow_reader "$base"
}
