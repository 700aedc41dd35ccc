//! `sockaccel` makes TCP between two processes of one Linux machine skip the
//! TCP/IP stack, and knows when not to.
//!
//! The command line is in [`cli`]; what it does to the kernel goes through
//! [`state`] (pins, lock, attachment), [`maps`] (typed access to each map) and
//! [`sys`] (every `unsafe`).

pub mod bench;
pub mod cli;
pub mod doctor;
pub mod error;
pub mod maps;
pub mod outcome;
pub mod output;
pub mod remedy;
pub mod spec;
pub mod state;
pub mod sys;
pub mod top;
pub mod words;
