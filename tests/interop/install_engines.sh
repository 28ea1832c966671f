#!/usr/bin/env bash
# What tests/interop/test_engines_real.py tries: Kafka, a server that speaks MongoDB's protocol, Ray and Spark, with their
# clients. Needs Java 17 and Maven. Idempotent. `small` leaves Ray and Spark out, which are more than a gigabyte: ninety
# megabytes are left, and `make interop` brings them.
set -eu
which=${1:-all}
if ! command -v java >/dev/null || ! command -v mvn >/dev/null; then
  echo "ENGINES NOT INSTALLED: no Java 17 and Maven here; the tests that use them will skip"
  exit 0
fi
home=${PYTAILSCALE_ENGINES:-$HOME/.cache/pytailscale/engines}
mkdir -p "$home"
cd "$home"

[ -x venv/bin/python ] || python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check 'aiokafka==0.14.0' \
  'pymongo==4.10.1'  # a later one wants more of a server than the one below
[ "$which" = small ] || venv/bin/pip install -q --disable-pip-version-check 'ray[client]==2.60.0' \
  'pyspark[connect]==4.3.0' 'pandas<3'

jars() { # jars FOLDER GROUP ARTIFACT VERSION
  [ -d "$1" ] && return
  cat >"$1.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>engines</groupId><artifactId>$1</artifactId><version>1</version>
<dependencies><dependency><groupId>$2</groupId><artifactId>$3</artifactId><version>$4</version></dependency></dependencies>
</project>
POM
  mvn -q -B -f "$1.xml" dependency:copy-dependencies -DoutputDirectory="$home/$1.part"
  mv "$1.part" "$1"
}
jars kafka org.apache.kafka kafka_2.13 4.1.1
jars mongo de.bwaldvogel mongo-java-server 1.47.0
echo "engines: $home"
