#!/usr/bin/env bash
# What tests/interop/test_engines_real.py tries: Ray, Spark, Kafka, and a server that speaks MongoDB's protocol, with their
# clients. About two gigabytes, so not part of `make interop`. Needs Java 17 and Maven. Idempotent.
set -eu
home=${PYTAILSCALE_ENGINES:-$HOME/.cache/pytailscale/engines}
mkdir -p "$home"
cd "$home"

[ -x venv/bin/python ] || python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check 'ray[client]==2.60.0' 'pyspark[connect]==4.3.0' 'pandas<3' \
  'aiokafka==0.14.0' 'pymongo==4.10.1'  # a later pymongo wants more of a server than the one below

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
