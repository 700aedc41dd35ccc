//! Signal handlers.
#![allow(unsafe_code)]

use nix::libc;
use nix::sys::signal::SaFlags;
use nix::sys::signal::SigAction;
use nix::sys::signal::SigHandler;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;
use nix::sys::signal::sigaction;

/// A handler that does nothing, with `SA_RESTART`: the signal interrupts what
/// a thread waits in, and the kernel goes on with it.
///
/// # Errors
///
/// Those of sigaction(2).
pub fn ignore_with_restart(signal: Signal) -> nix::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing, so it is safe at any moment.
    unsafe { sigaction(signal, &action) }.map(drop)
}
