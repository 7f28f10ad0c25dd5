//! The engine room: the devices that compute, and the processes that compute together.

pub mod collective;
pub mod device;
mod passes;
pub mod pixels;
