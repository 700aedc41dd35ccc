//! Every `unsafe` of the program, behind safe functions.

pub mod probe;
