module pytailscale.test/peers/headscale

go 1.26.0

tool github.com/juanfont/headscale/cmd/headscale

require github.com/juanfont/headscale v0.28.0
