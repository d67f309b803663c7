//! The Hyper-V Replica log (MS-HRL) and the journal object that carries it.
