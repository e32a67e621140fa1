//! control-plane/prober
