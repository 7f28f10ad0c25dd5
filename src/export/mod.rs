//! What comes out of a run, for use elsewhere.

pub mod timm;
