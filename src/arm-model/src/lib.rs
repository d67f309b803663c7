//! Types of the Azure Resource Manager and Site Recovery REST surface.
