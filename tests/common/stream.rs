//! Reading and writing within a deadline, for blocking and non-blocking sockets.

use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpStream;

use nix::poll::PollFlags;

use super::deadline::Deadline;

/// Writes some: what one write took.
pub fn send_some(mut stream: &TcpStream, bytes: &[u8], deadline: Deadline) -> usize {
    loop {
        match stream.write(bytes) {
            Ok(n) => return n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                deadline.wait(stream, PollFlags::POLLOUT, "send");
            }
            Err(e) => panic!("send: {e}"),
        }
        deadline.check("send");
    }
}

/// Writes all.
pub fn send_all(stream: &TcpStream, bytes: &[u8], deadline: Deadline) {
    let mut sent = 0;
    while sent < bytes.len() {
        sent += send_some(stream, &bytes[sent..], deadline);
    }
}

/// Reads some: 0 is the end of the stream.
pub fn recv_some(mut stream: &TcpStream, buffer: &mut [u8], deadline: Deadline) -> usize {
    loop {
        match stream.read(buffer) {
            Ok(n) => return n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                deadline.wait(stream, PollFlags::POLLIN, "receive");
            }
            Err(e) => panic!("receive: {e}"),
        }
        deadline.check("receive");
    }
}

/// Fills the buffer; the end of the stream before that fails the test.
pub fn recv_all(stream: &TcpStream, buffer: &mut [u8], deadline: Deadline) {
    let mut got = 0;
    while got < buffer.len() {
        let n = recv_some(stream, &mut buffer[got..], deadline);
        assert!(
            n > 0,
            "the stream ended after {got} of {} bytes",
            buffer.len()
        );
        got += n;
    }
}

/// Reads to the end of the stream and throws away; the count.
pub fn drain(stream: &TcpStream, deadline: Deadline) -> u64 {
    let mut buffer = vec![0; 1 << 16];
    let mut total = 0;
    loop {
        match recv_some(stream, &mut buffer, deadline) {
            0 => return total,
            n => total += n as u64,
        }
    }
}
