# Loaded into mmdebstrap, which passes the finished tar on with File::Copy. Of a
# pipe that moves 1024 bytes at a time unless told otherwise, and takes longer
# than making the tar.
package copy;
use strict;
use warnings;
use File::Copy ();

my $copy = \&File::Copy::copy;
no warnings 'redefine';
*File::Copy::copy = sub { $copy->( @_ == 2 ? ( @_, 1 << 20 ) : @_ ) };

1;
